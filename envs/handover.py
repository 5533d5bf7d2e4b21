"""Make something in a thread for whoever waits; undo it when nobody does any more.

    waiter --> thread makes it --> handed over
       '-- cancelled: made already? it is undone here; else the thread undoes it when it is made

A thread cannot be cancelled: without this, what it makes for a call that has left (a claim,
a scratch directory) would stay as long as this process lives, and others wait for it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from .ending import thread_to_its_end

__all__ = ["in_thread"]

T = TypeVar("T")


class _Handover(Generic[T]):
    def __init__(self, make: Callable[[], T], undo: Callable[[T], object]) -> None:
        self._make = make
        self._undo = undo
        self._lock = threading.Lock()
        self._left = False
        self._made: list[T] = []

    def work(self) -> T:
        made = self._make()
        with self._lock:
            if not self._left:
                self._made.append(made)
                return made
        self._undo(made)
        return made

    def leave(self) -> None:
        with self._lock:
            self._left = True
        for made in self._made:
            self._undo(made)


async def in_thread(make: Callable[[], T], undo: Callable[[T], object]) -> T:
    """Make it in a thread; if the waiter is cancelled, nothing of it stays."""
    handover = _Handover(make, undo)
    try:
        return await asyncio.to_thread(handover.work)
    except asyncio.CancelledError:
        await thread_to_its_end(handover.leave)
        raise
