"""`terminate`, `kill` and `cancel` of a pool, for every start method of workers."""

import os
import signal
import time
from concurrent.futures import CancelledError

import pytest
from contract import executor_functions as there
from contract.waiting import eventually, is_alive, running

from flashpool.pool import InvalidRequest, Pool
from flashpool.pool.errors import Cancelled


@pytest.fixture(params=["fork", "spawn"])
def pool(request):
    with Pool(1, start_method=request.param, grace_s=30) as pool:
        yield pool


def ignores_sigterm(path):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    there.touch_then_sleep(path, 60)


def notes_sigterm(path, note):
    def note_it(*_):
        with open(note, "w") as file:
            file.write("SIGTERM")
        os._exit(0)

    signal.signal(signal.SIGTERM, note_it)
    there.touch_then_sleep(path, 60)


class TestTerminateAndKill:
    @pytest.mark.parametrize("name", ["terminate_workers", "kill_workers"])
    def test_running_calls_fail_and_waiting_ones_are_cancelled(self, pool, tmp_path, name):
        with running(pool, tmp_path) as (future, pid):
            waiting = pool.submit(abs, -1)
            began = time.monotonic()
            getattr(pool, name)()
            assert time.monotonic() - began < 1
            with pytest.raises(CancelledError):
                waiting.result(10)
            with pytest.raises(Cancelled, match=f"{name} was called"):
                future.result(10)
            assert not future.cancelled()
            eventually(lambda: not is_alive(pid), 5)
        with pytest.raises(RuntimeError, match="after shutdown"):
            pool.submit(abs, -1)
        # A second call does no harm.
        getattr(pool, name)()

    def test_terminated_calls_get_sigterm(self, pool, tmp_path):
        mark, note = tmp_path / "mark", tmp_path / "note"
        pool.submit(notes_sigterm, str(mark), str(note))
        eventually(mark.exists)
        pool.options(timeout=5).terminate_workers()
        eventually(note.exists, 5)

    def test_killed_calls_get_no_sigterm(self, pool, tmp_path):
        mark, note = tmp_path / "mark", tmp_path / "note"
        pool.submit(notes_sigterm, str(mark), str(note))
        eventually(lambda: mark.exists() and mark.read_text())
        pid = int(mark.read_text())
        pool.options(timeout=5).kill_workers()
        eventually(lambda: not is_alive(pid), 5)
        assert not note.exists()

    def test_kill_after_terminate_does_not_wait_for_the_grace(self, pool, tmp_path):
        mark = tmp_path / "mark"
        pool.submit(ignores_sigterm, str(mark))
        eventually(lambda: mark.exists() and mark.read_text())
        pid = int(mark.read_text())
        pool.terminate_workers()
        time.sleep(0.2)
        assert is_alive(pid)
        pool.kill_workers()
        eventually(lambda: not is_alive(pid), 5)

    @pytest.mark.parametrize("name", ["terminate_workers", "kill_workers"])
    def test_a_pool_that_has_not_started(self, name):
        pool = Pool(1)
        getattr(pool, name)()
        with pytest.raises(RuntimeError):
            pool.submit(abs, -1)


class TestCancelById:
    def test_a_running_call(self, pool, tmp_path):
        with running(pool, tmp_path) as (future, pid):
            assert future.call_id in [one.id for one in pool.stats().running]
            assert pool.cancel(future.call_id)
            assert future.cancelled()
            eventually(lambda: not is_alive(pid), 5)
            assert not pool.cancel(future.call_id)

    def test_a_waiting_call_and_one_of_a_view(self, pool, tmp_path):
        with running(pool, tmp_path) as (future, _):
            waiting = pool.submit(abs, -1)
            assert pool.options(timeout=9).cancel(waiting.call_id)
            assert waiting.cancelled()
            assert not future.done()

    def test_a_stream(self, pool):
        future = pool.submit(there.count, 10**9)
        iterator = future.result(10)
        assert next(iterator) == 0
        assert pool.cancel(future.call_id)
        with pytest.raises(Cancelled):
            list(iterator)
        assert not pool.cancel(future.call_id)

    def test_a_call_of_a_map(self, pool, tmp_path):
        results = pool.map(there.sleep, [60], ["never"])
        eventually(lambda: pool.stats().running)
        assert pool.cancel(pool.stats().running[0].id)
        with pytest.raises(CancelledError):
            next(results)

    def test_a_call_that_has_ended_or_never_was(self, pool):
        future = pool.submit(abs, -1)
        assert future.result(10) == 1
        assert isinstance(future.call_id, int)
        assert not pool.cancel(future.call_id)
        assert not pool.cancel(10**9)
        assert not Pool(1).cancel(1)

    def test_a_call_that_could_not_be_submitted_has_no_id(self, pool):
        future = pool.submit(abs, (one for one in ()))
        assert future.exception(10) is not None
        assert future.call_id is None


def test_on_error_is_one_of_two_words():
    with pytest.raises(
        InvalidRequest, match="on_error must be 'finish' or 'terminate'; got 'kill'"
    ):
        Pool(1, on_error="kill")
