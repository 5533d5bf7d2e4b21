"""The end of an app that was replaced: it finishes its requests, and its workers exit.

    retire --> no request left, or time over --> close --> workers gone --> then()

`SettlingWaiters` are tasks that wait until the workers of an app have loaded it, or have failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Retirement:
    """The retirement of one app."""

    def __init__(self, close: Callable[[], None], cut: Callable[[], None]) -> None:
        """``cut``: ends the requests that are left when the time is over."""
        self._close = close
        self._cut = cut
        self._then: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def begun(self) -> bool:
        """Return whether the retirement has begun: the app gets no more requests."""
        return self._timer is not None

    def begin(self, within_s: float, then: Callable[[], None]) -> None:
        """Begin to retire an app that gets no more requests; ``then`` is called at the end."""
        self._then = then
        self._timer = asyncio.get_running_loop().call_later(within_s, self._time_is_over)

    def _time_is_over(self) -> None:
        self._cut()
        self._close()

    def look(self, *, busy: bool, workers: bool) -> None:
        """Close the app once it has no requests, and finish once it has no workers.

        Called after each change. ``busy``: requests or their tasks are left.
        """
        if self._timer is None:
            return
        if not busy:
            self._timer.cancel()
            self._close()
            if not workers and self._then is not None:
                then, self._then = self._then, None
                then()

    def abandon(self) -> None:
        """Cancel the timer: the pool stops."""
        if self._timer is not None:
            self._timer.cancel()


class SettlingWaiters:
    """Tasks that wait for a condition."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until the condition holds; check it now and after each `look`."""
        while not is_so():
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter

    def look(self) -> None:
        """Make all waiting tasks check their conditions, because something changed."""
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if not one.done():
                one.set_result(None)
