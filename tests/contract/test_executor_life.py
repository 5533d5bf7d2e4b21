"""The Executor suite for every start method of workers: start, shutdown and faults of a pool."""

import contextlib
import gc
import math
import os
import signal

import pytest
from contract import executor_functions as there
from contract.waiting import eventually, is_alive, running

from flashpool.pool import Pool, PoolClosed, WorkerCrashed


@pytest.fixture(params=["fork", "spawn"])
def method(request):
    return request.param


@pytest.fixture
def pool(method):
    with Pool(2, start_method=method, grace_s=0.3) as pool:
        yield pool


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

    def test_a_missing_interpreter_is_an_error(self):
        pool = Pool(1, base_python="/nonexistent/python")
        with pytest.raises(Exception, match="/nonexistent/python") as raised:
            pool.submit(abs, 1)
        assert type(raised.value).__name__ == "EnvironmentStartFailed"

    def test_invalid_sizes_are_refused(self):
        for number in (0, -1):
            with pytest.raises(ValueError, match="max_workers must be greater than 0"):
                Pool(number)

    def test_a_pool_is_refused_in_a_fork_of_the_program_and_still_works(self, pool):
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

    def test_a_fork_of_the_program_can_create_its_own_pool(self, pool):
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
