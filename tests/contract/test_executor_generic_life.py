"""The generic part of the Executor suite, for every backend: shutdown of a pool."""

import gc
import os
import signal
import threading
import weakref

import pytest
from contract import executor_functions as there
from contract.backends import MAKERS
from contract.waiting import eventually

from flashpool.pool import PoolClosed
from flashpool.pool.executor.engine import Engine


def engine_threads():
    return [t.name for t in threading.enumerate() if t.name.startswith("flashpool")]


@pytest.fixture(params=MAKERS)
def make(request):
    return MAKERS[request.param]


@pytest.fixture
def pool(make):
    with make(2, grace_s=0.3) as pool:
        yield pool


class TestShutdown:
    def test_submit_is_refused_afterwards(self, make):
        pool = make(1)
        assert pool.submit(abs, -1).result() == 1
        pool.shutdown()
        with pytest.raises(PoolClosed, match="after shutdown"):
            pool.submit(abs, -1)
        with pytest.raises(RuntimeError):
            pool.map(abs, [1])
        pool.shutdown()

    def test_of_a_pool_that_never_started(self, make):
        pool = make(1)
        pool.shutdown()
        with pytest.raises(PoolClosed):
            pool.submit(abs, -1)

    def test_waits_for_what_was_submitted(self, make):
        with make(2) as pool:
            results = [pool.submit(there.sleep, 0.05, i) for i in range(10)]
        assert [one.result(0) for one in results] == list(range(10))

    def test_without_waiting_the_work_is_still_done(self, make):
        pool = make(2)
        results = [pool.submit(there.sleep, 0.05, i) for i in range(6)]
        pool.shutdown(wait=False)
        assert [one.result(30) for one in results] == list(range(6))

    def test_cancels_what_is_queued_and_finishes_what_runs(self, pool, tmp_path):
        go = tmp_path / "go"
        runs = [pool.submit(there.wait_for, str(go)) for _ in range(2)]
        eventually(lambda: all(one.running() for one in runs))
        queued = [pool.submit(there.add, 1) for _ in range(20)]
        pool.shutdown(wait=False, cancel_futures=True)
        assert all(one.cancelled() for one in queued)
        go.touch()
        assert [one.result(30) for one in runs] == [None, None]

    def test_from_inside_a_callback(self, make):
        pool = make(2)
        called = threading.Event()

        def close(_):
            pool.shutdown(wait=True)
            called.set()

        slow = pool.submit(there.sleep, 0.3, "slow")
        pool.submit(there.add, 1).add_done_callback(close)
        assert called.wait(30)
        assert slow.result(30) == "slow"
        pool.shutdown()

    def test_from_two_threads_at_once(self, make):
        pool = make(2)
        future = pool.submit(there.sleep, 0.2, 5)
        threads = [threading.Thread(target=pool.shutdown) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert future.result(0) == 5

    @pytest.mark.parametrize("wait", [True, False])
    def test_during_the_first_submit_of_another_thread(self, make, monkeypatch, wait):
        starting, go = threading.Event(), threading.Event()
        start = Engine.start

        def start_late(engine):
            starting.set()
            assert go.wait(30)
            start(engine)

        monkeypatch.setattr(Engine, "start", start_late)
        pool = make(1)
        errors = []

        def submit():
            try:
                pool.submit(abs, -1)
            except PoolClosed as error:
                errors.append(str(error))

        submitter = threading.Thread(target=submit)
        submitter.start()
        assert starting.wait(30)
        closer = threading.Thread(target=pool.shutdown, args=(wait,))
        closer.start()
        if wait:
            eventually(lambda: pool._closed)
        else:
            closer.join(30)
            assert not closer.is_alive(), "it waits for the start"
        go.set()
        closer.join(30)
        submitter.join(30)
        assert errors == ["cannot schedule new futures after shutdown"]
        if wait:
            assert not engine_threads()
        eventually(lambda: not engine_threads())

    def test_in_a_signal_handler_during_the_first_submit(self, make, monkeypatch):
        pool = make(1)
        before = signal.signal(signal.SIGUSR1, lambda *_: pool.shutdown())
        start = Engine.start

        def start_interrupted(engine):
            os.kill(os.getpid(), signal.SIGUSR1)
            start(engine)

        monkeypatch.setattr(Engine, "start", start_interrupted)
        try:
            with pytest.raises(PoolClosed):
                pool.submit(abs, -1)
        finally:
            signal.signal(signal.SIGUSR1, before)
        eventually(lambda: not engine_threads())

    def test_stats_after_shutdown_raise_and_do_not_hang(self, make):
        pool = make(1)
        pool.submit(abs, -1).result()
        engine = pool._engine_to_submit()
        pool.shutdown()

        def ask():
            for _ in range(3):
                with pytest.raises(PoolClosed):
                    engine.stats()

        asked = threading.Thread(target=ask, daemon=True)
        asked.start()
        asked.join(30)
        assert not asked.is_alive(), "it hangs"

    def test_while_others_submit(self, make):
        pool = make(2)
        accepted = []
        refused = threading.Event()

        def work():
            try:
                while True:
                    accepted.append(pool.submit(there.add, 1))
            except PoolClosed:
                refused.set()

        pool.submit(abs, 1).result()
        thread = threading.Thread(target=work)
        thread.start()
        eventually(lambda: len(accepted) > 20)
        pool.shutdown(cancel_futures=True)
        thread.join(30)
        assert refused.is_set()
        assert all(one.done() for one in accepted)

    def test_a_garbage_collected_pool_finishes_its_calls_and_ends(self, make):
        pool = make(2)
        results = pool.map(there.sleep, [0.05] * 4, range(4))
        threads = [t for t in threading.enumerate() if t.name.startswith("flashpool")]
        gone = weakref.ref(pool)
        del pool
        gc.collect()
        assert gone() is None
        for thread in threads:
            thread.join(30)
        assert list(results) == list(range(4))

    def test_an_unread_stream_does_not_delay_shutdown(self, make):
        pool = make(1, grace_s=0.2)
        items = pool.submit(there.count, 10**9).result()
        assert next(items) == 0
        pool.shutdown()
        with pytest.raises(Exception, match="shut down"):
            list(items)

    def test_a_short_stream_can_be_read_after_shutdown(self, make):
        with make(1) as pool:
            items = pool.submit(there.count, 5)
        assert list(items.result()) == [0, 1, 2, 3, 4]

    def test_shutdown_leaves_no_threads_or_descriptors(self, make):
        for _ in range(3):
            with make(2) as pool:
                assert pool.submit(abs, -1).result() == 1
