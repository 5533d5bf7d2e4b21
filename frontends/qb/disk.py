"""What is asked of a disk that may hang: in threads that nobody waits for beyond a limit.

    run(limit_s, what) --> [ queue ] --> a few threads --> its result
         `-- not back in time: `DiskHangs`; what had not begun is not done any more

A network's volume can hold a system call for ever. The threads of asyncio are joined when the
loop ends, and Python waits for those of executors when it exits: one such call, and the
process stays. These are daemons.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Final, TypeVar

T = TypeVar("T")

#: At once: those that hang hold these, and no more.
_THREADS: Final = 4


class DiskHangs(OSError):
    """No answer in time; what was asked may still be done."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"the disk has not answered within {limit_s:g} s")


class Disk:
    """One disk, or one place of it. For a loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._threads = 0

    async def run(self, limit_s: float, what: Callable[[], T]) -> T:
        """What it returns, or raises; `DiskHangs` when that takes longer."""
        future = self._ask(what)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), limit_s)
        except asyncio.TimeoutError:
            raise DiskHangs(limit_s) from None

    def wait(self, limit_s: float, what: Callable[[], T]) -> T:
        """The same, where there is no loop yet."""
        try:
            return self._ask(what).result(limit_s)
        except FutureTimeout:
            raise DiskHangs(limit_s) from None

    def _ask(self, what: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        with self._lock:
            self._asked.append((future, what))
            more = self._threads < _THREADS
            self._threads += more
        if more:
            threading.Thread(target=self._work, name="disk", daemon=True).start()
        return future

    def _work(self) -> None:
        """Until nothing is asked any more."""
        while True:
            with self._lock:
                if not self._asked:
                    self._threads -= 1
                    return
                future, what = self._asked.popleft()
            if future.set_running_or_notify_cancel():
                _do(future, what)
            del future, what  # and with them what they hold, while the next one is waited for


def _do(future: Future[Any], what: Callable[[], Any]) -> None:
    try:
        future.set_result(what())
    except BaseException as error:  # noqa: BLE001 - who waits raises it
        future.set_exception(error)
