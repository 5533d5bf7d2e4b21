"""The end of an app that another one takes the place of: it finishes what it has, and leaves.

    retire --> no request left, or time over --> close --> workers gone --> then()

And who waits for the workers of an app to have loaded it, or to have failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Retirement:
    """The retirement of one app."""

    def __init__(self, close: Callable[[], None], cut: Callable[[], None]) -> None:
        """``cut`` ends the requests that are left when the time is over."""
        self._close = close
        self._cut = cut
        self._then: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def begun(self) -> bool:
        """Whether it accepts no more requests."""
        return self._timer is not None

    def begin(self, within_s: float, then: Callable[[], None]) -> None:
        """Nobody sends it requests any more."""
        self._then = then
        self._timer = asyncio.get_running_loop().call_later(within_s, self._time_is_over)

    def _time_is_over(self) -> None:
        self._cut()
        self._close()

    def look(self, *, busy: bool, workers: bool) -> None:
        """Something changed: whether requests, or tasks of theirs, are left, and workers."""
        if self._timer is None:
            return
        if not busy:
            self._timer.cancel()
            self._close()
            if not workers and self._then is not None:
                then, self._then = self._then, None
                then()

    def abandon(self) -> None:
        """The pool stops."""
        if self._timer is not None:
            self._timer.cancel()


class SettlingWaiters:
    """Waiters for a condition."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Look now, and whenever something changed."""
        while not is_so():
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter

    def look(self) -> None:
        """Something changed."""
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if not one.done():
                one.set_result(None)
