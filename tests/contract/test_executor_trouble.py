"""Errors on a pool's own threads are raised in the waiting callers; no caller waits for ever."""

import os
import resource
from concurrent.futures import ThreadPoolExecutor

import pytest

from flashpool.pool import Pool
from flashpool.pool.supervisor.supervisor import Supervisor


@pytest.fixture
def pool():
    with Pool(1) as pool:
        assert pool.submit(abs, -1).result() == 1
        yield pool


def answer_of(ask):
    """Return or raise what the function does, within a time limit."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(ask).result(30)


def test_an_invalid_variable_of_the_store_fails_every_call(monkeypatch):
    monkeypatch.setenv("FLASHPOOL_ENV_QUOTA_MB", "plenty")
    with Pool(1, dependencies=["six"]) as pool:
        for _ in range(2):
            with pytest.raises(ValueError, match="FLASHPOOL_ENV_QUOTA_MB must be a number"):
                pool.submit(abs, -1).result(30)


def test_stats_work_when_no_descriptor_is_left(pool):
    assert pool.submit(abs, -1).result() == 1
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        supervisor = None
        # Descriptors of the last call are closed meanwhile.
        while supervisor is None or supervisor.open_files != min(soft, 256):
            with pytest.raises(OSError, match="Too many open files"):
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            supervisor = answer_of(pool.stats).supervisor
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for one in taken:
            os.close(one)
    assert supervisor.rss_mb > 1


def test_an_error_on_the_loop_is_raised_in_the_waiting_caller(pool, monkeypatch):
    assert pool.submit(abs, -1).result() == 1

    def broken(_supervisor):
        raise ArithmeticError("broken")

    monkeypatch.setattr(Supervisor, "stats", broken)
    with pytest.raises(ArithmeticError, match="broken"):
        answer_of(pool.stats)
