"""Operations on a disk that may hang, in threads that callers wait for only for a limited time.

    run(limit_s, what) --> [ queue ] --> a few threads --> its result
         `-- not back in time: `DiskHangs`; an operation that has not begun is dropped

On a network volume, a system call can hang for ever. asyncio joins its threads when the loop ends,
and Python joins the threads of executors when it exits, so a single hanging call would keep the
process alive. The threads here are daemons.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Final, TypeVar

from flashpool.envs.concurrency.disk_hangs import DiskHangs
from flashpool.envs.concurrency.disk_threads import DiskThreads

__all__ = ["Disk", "DiskHangs"]

T = TypeVar("T")

#: Threads per disk, and so the most threads that hanging operations can occupy.
_THREADS: Final = 4


class Disk:
    """One disk, or one place on a disk, for code on an event loop."""

    def __init__(self) -> None:
        self._threads = DiskThreads("queue-disk", threads=_THREADS)

    async def run(self, limit_s: float, what: Callable[[], T]) -> T:
        """Run a function and return its result; raise `DiskHangs` when the limit passes."""
        try:
            return await asyncio.wait_for(self._threads.run(what), limit_s)
        except asyncio.TimeoutError:
            raise _no_answer(limit_s) from None

    def wait(self, limit_s: float, what: Callable[[], T]) -> T:
        """Like `run`, for code without an event loop."""
        try:
            return self._threads.submit(what).result(limit_s)
        except FutureTimeout:
            raise _no_answer(limit_s) from None


def _no_answer(limit_s: float) -> DiskHangs:
    return DiskHangs(f"the disk has not answered within {limit_s:g} s")
