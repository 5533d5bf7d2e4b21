"""One Executor suite, over every way workers are started: beginning, end and faults of a pool."""

import contextlib
import gc
import math
import os
import signal
import threading
import weakref

import pytest
from contract import executor_functions as there
from contract.waiting import eventually, is_alive, running

from flashpool.pool import Pool, PoolClosed, WorkerCrashed
from flashpool.pool.executor.engine import Engine


def engine_threads():
    return [t.name for t in threading.enumerate() if t.name.startswith("flashpool")]


@pytest.fixture(params=["fork", "spawn"])
def method(request):
    return request.param


@pytest.fixture
def pool(method):
    with Pool(2, start_method=method, grace_s=0.3) as pool:
        yield pool


class TestShutdown:
    def test_refuses_afterwards(self, method):
        pool = Pool(1, start_method=method)
        assert pool.submit(abs, -1).result() == 1
        pool.shutdown()
        with pytest.raises(PoolClosed, match="after shutdown"):
            pool.submit(abs, -1)
        with pytest.raises(RuntimeError):
            pool.map(abs, [1])
        pool.shutdown()

    def test_of_a_pool_that_never_started(self):
        pool = Pool(1)
        pool.shutdown()
        with pytest.raises(PoolClosed):
            pool.submit(abs, -1)

    def test_waits_for_what_was_submitted(self, method):
        with Pool(2, start_method=method) as pool:
            results = [pool.submit(there.sleep, 0.05, i) for i in range(10)]
        assert [one.result(0) for one in results] == list(range(10))

    def test_without_waiting_the_work_is_done_all_the_same(self, method):
        pool = Pool(2, start_method=method)
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

    def test_from_inside_a_callback(self, method):
        pool = Pool(2, start_method=method)
        called = threading.Event()

        def close(_):
            pool.shutdown(wait=True)
            called.set()

        slow = pool.submit(there.sleep, 0.3, "slow")
        pool.submit(there.add, 1).add_done_callback(close)
        assert called.wait(30)
        assert slow.result(30) == "slow"
        pool.shutdown()

    def test_from_two_threads_at_once(self, method):
        pool = Pool(2, start_method=method)
        future = pool.submit(there.sleep, 0.2, 5)
        threads = [threading.Thread(target=pool.shutdown) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert future.result(0) == 5

    @pytest.mark.parametrize("wait", [True, False])
    def test_during_the_first_submit_of_another_thread(self, method, monkeypatch, wait):
        starting, go = threading.Event(), threading.Event()
        start = Engine.start

        def start_late(engine):
            starting.set()
            assert go.wait(30)
            start(engine)

        monkeypatch.setattr(Engine, "start", start_late)
        pool = Pool(1, start_method=method)
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

    def test_in_a_signal_handler_during_the_first_submit(self, method, monkeypatch):
        pool = Pool(1, start_method=method)
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

    def test_between_the_look_and_the_question_for_stats(self, method):
        pool = Pool(1, start_method=method)
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

    def test_while_others_submit(self, method):
        pool = Pool(2, start_method=method)
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

    def test_a_dropped_pool_finishes_and_goes(self, method):
        pool = Pool(2, start_method=method)
        results = pool.map(there.sleep, [0.05] * 4, range(4))
        threads = [t for t in threading.enumerate() if t.name.startswith("flashpool")]
        gone = weakref.ref(pool)
        del pool
        gc.collect()
        assert gone() is None
        for thread in threads:
            thread.join(30)
        assert list(results) == list(range(4))

    def test_a_stream_that_nobody_reads_does_not_hold_it_up(self, method):
        pool = Pool(1, start_method=method, grace_s=0.2)
        items = pool.submit(there.count, 10**9).result()
        assert next(items) == 0
        pool.shutdown()
        with pytest.raises(Exception, match="shut down"):
            list(items)

    def test_a_short_stream_can_be_read_after_it(self, method):
        with Pool(1, start_method=method) as pool:
            items = pool.submit(there.count, 5)
        assert list(items.result()) == [0, 1, 2, 3, 4]

    def test_leaves_nothing(self, method):
        for _ in range(3):
            with Pool(2, start_method=method) as pool:
                assert pool.submit(abs, -1).result() == 1


class TestFaults:
    def test_a_zygote_killed_under_running_calls(self, pool, tmp_path):
        with running(pool, tmp_path) as (future, pid):
            zygotes = pool.stats().zygotes
            for zygote in zygotes:
                os.kill(zygote.pid, signal.SIGKILL)
            with pytest.raises(WorkerCrashed):
                future.result(30)
            eventually(lambda: not is_alive(pid))
        assert pool.submit(abs, -1).result(30) == 1

    def test_an_interpreter_that_is_not_there(self):
        pool = Pool(1, base_python="/nonexistent/python")
        with pytest.raises(Exception, match="/nonexistent/python") as raised:
            pool.submit(abs, 1)
        assert type(raised.value).__name__ == "EnvironmentStartFailed"

    def test_bad_sizes(self):
        for number in (0, -1):
            with pytest.raises(ValueError, match="max_workers must be greater than 0"):
                Pool(number)

    def test_a_fork_of_the_program_is_refused_and_harms_nobody(self, pool):
        assert pool.submit(abs, -1).result() == 1
        waiting = pool.submit(there.sleep, 0.5, "mine")
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            answer = b"not refused"
            try:
                with contextlib.suppress(PoolClosed):
                    pool.submit(abs, -1)
                    raise AssertionError
                answer = b"waits"
                told = isinstance(waiting.exception(timeout=10), PoolClosed)
                answer = b"does not shut down"
                pool.shutdown()
                del pool
                gc.collect()
                answer = b"refused" if told else b"ends otherwise"
            finally:
                os.write(writer, answer)
                os._exit(0)
        os.close(writer)
        os.waitpid(child, 0)
        assert os.read(reader, 100) == b"refused"
        os.close(reader)
        assert waiting.result(30) == "mine"
        assert pool.submit(abs, -2).result() == 2

    def test_a_fork_makes_a_pool_of_its_own(self, pool):
        assert pool.submit(abs, -1).result() == 1
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with Pool(1) as own:
                    status = own.submit(math.factorial, 3).result() - 6
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert pool.submit(abs, -2).result() == 2
