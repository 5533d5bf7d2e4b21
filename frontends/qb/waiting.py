"""Waiting with a limit, as the queue's loops do: for anything, and for news that several await."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable


async def within(awaitable: Awaitable[object], seconds: float) -> None:
    """Wait for it, at most so long."""
    try:
        await asyncio.wait_for(awaitable, seconds)
    except asyncio.TimeoutError:
        pass


class News:
    """Something happened that may be what others wait for; each that waits hears of it."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def notify(self) -> None:
        """It happened."""
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Until it happens the next time, or so long."""
        await within(self._next.wait(), seconds)
