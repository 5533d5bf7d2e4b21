"""A bound on how much is built at once, and word to those who wait.

    place(report) -> free? in
                  -> else a queue, begun builds before new ones; each move is reported

Every build runs uv, and uv all cores: ten at once end no sooner than two, and take ten
times the memory. Used on one event loop.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from .single_flight import Report

__all__ = ["BuildSlots"]


@dataclass(order=True, slots=True)
class _Waiting:
    late: bool
    number: int
    report: Report = field(compare=False)
    turn: asyncio.Future[None] = field(compare=False)
    told: int = field(default=-1, compare=False)


class BuildSlots:
    """So many places, and a queue."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._places = places
        self._queue: list[_Waiting] = []
        self._numbers = itertools.count()

    def __repr__(self) -> str:
        return f"<Berths {self._free} of {self._places} free, {len(self._queue)} waiting>"

    @asynccontextmanager
    async def place(self, report: Report, *, begun: bool = False) -> AsyncIterator[None]:
        """Hold a place; `begun` goes before what has not had one yet."""
        if self._free and not self._queue:
            self._free -= 1
        else:
            await self._wait(report, begun)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, report: Report, begun: bool) -> None:
        turn = asyncio.get_running_loop().create_future()
        waiting = _Waiting(not begun, next(self._numbers), report, turn)
        bisect.insort(self._queue, waiting)
        self._tell()
        try:
            await turn
        except asyncio.CancelledError:
            # Cancelled in the instant in which its turn came: the place is its own to give.
            if turn.done() and not turn.cancelled():
                self._pass_on()
            elif waiting in self._queue:
                self._queue.remove(waiting)
                self._tell()
            raise

    def _pass_on(self) -> None:
        while self._queue:
            turn = self._queue.pop(0).turn
            if not turn.done():  # cancelled, and not yet awake to leave the queue by itself
                turn.set_result(None)
                self._tell()
                return
        self._free += 1

    def _tell(self) -> None:
        for ahead, waiting in enumerate(self._queue):
            if waiting.told != ahead:
                waiting.told = ahead
                waiting.report(
                    f"Waiting to be built: {self._places} under way, {ahead} more before this one"
                )
