"""Waits with a time limit: for an awaitable, and for a change that several tasks await."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable


async def within(awaitable: Awaitable[object], seconds: float) -> None:
    """Wait for an awaitable, for a limited time."""
    try:
        await asyncio.wait_for(awaitable, seconds)
    except asyncio.TimeoutError:
        pass


class News:
    """A condition that may have changed; every waiter is notified."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def notify(self) -> None:
        """Notify all waiters."""
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Wait for the next notification, for a limited time."""
        await within(self._next.wait(), seconds)
