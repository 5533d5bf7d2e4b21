"""Helpers that wait for conditions, and for calls to be running."""

import time
from contextlib import contextmanager

from contract import executor_functions as there

from support.waiting import PATIENCE


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the process may exit between open and read
        return False


def eventually(condition, limit=30.0):
    deadline = time.monotonic() + PATIENCE * limit
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.005)


def written(path):
    return path.exists() and path.read_text() != ""


@contextmanager
def running(pool, tmp_path, seconds=60):
    """Start a call; return the call and its pid once the call runs."""
    mark = tmp_path / "running"
    future = pool.submit(there.touch_then_sleep, str(mark), seconds)
    eventually(lambda: written(mark))
    yield future, int(mark.read_text())
    future.cancel()
