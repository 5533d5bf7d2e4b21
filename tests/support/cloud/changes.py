"""Notifies coroutines of the stand-in and the test's thread of changes."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Changes:
    """`tell()` on the loop; wait on either side."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._waiting: set[asyncio.Future[None]] = set()

    def tell(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        with self._condition:
            self._condition.notify_all()

    async def until(self, holds: Callable[[], T], seconds: float | None) -> T:
        """On the loop: return the condition's value once true, or at the time-out."""
        end = None if seconds is None else time.monotonic() + seconds
        while not (value := holds()):
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                break
            await self._next(left)
        return value

    async def _next(self, seconds: float | None) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(future, seconds)
        finally:
            self._waiting.discard(future)

    def watch(self, holds: Callable[[], T], seconds: float) -> T:
        """On a thread: return the condition's value once true; fail at the time-out."""
        end = time.monotonic() + seconds
        with self._condition:
            while not (value := holds()):
                left = end - time.monotonic()
                assert left > 0, f"still not so after {seconds:g} s"
                # Poll as well, for changes that no request causes (an exit of a process).
                self._condition.wait(min(left, 0.05))
        return value
