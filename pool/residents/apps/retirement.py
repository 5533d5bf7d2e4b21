"""How an app is waited for: until it is loaded or cannot be, and until it has nothing left to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Retirement:
    """What others wait for."""

    def __init__(self, busy: Callable[[], int], close: Callable[[], None]) -> None:
        self._busy = busy
        self._close = close
        #: Set when the app is no longer loading.
        self.settled = asyncio.Event()
        self._idle = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def emptied(self) -> None:
        """A request ended, perhaps the last one."""
        self._idle.set()

    def begin(self, within_s: float, then: Callable[[], None]) -> None:
        """Close the app when it has nothing left to do, and after so many seconds anyway."""
        self._task = asyncio.ensure_future(self._retire(within_s, then))

    def cancel(self) -> None:
        """The app ends at once."""
        if self._task is not None:
            self._task.cancel()

    async def _retire(self, within_s: float, then: Callable[[], None]) -> None:
        try:
            await asyncio.wait_for(self._until_idle(), within_s)
        except asyncio.TimeoutError:
            pass
        self._close()
        then()

    async def _until_idle(self) -> None:
        while self._busy():
            self._idle.clear()
            await self._idle.wait()
