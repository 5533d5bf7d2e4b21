"""Limits how many builds run at once, and reports to builds that wait.

    place(report) -> a free place? enter
                  -> otherwise a queue, begun builds before new ones; each move is reported

A build without waiters keeps its place until another build needs the place, and is then cancelled.
In the queue it comes last.

Every build runs uv, and uv uses all cores: ten at once finish no sooner than two at a time, and
take ten times the memory. Used on one event loop.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from .single_flight import Flight, Report, current_flight

__all__ = ["BuildSlots"]

_log = logging.getLogger(__name__)


@dataclass(order=True, slots=True)
class _Waiting:
    late: bool
    number: int
    report: Report = field(compare=False)
    flight: Flight[Any] | None = field(compare=False)
    turn: asyncio.Future[None] = field(compare=False)
    told: int = field(default=-1, compare=False)

    @property
    def wanted(self) -> bool:
        return self.flight is None or self.flight.wanted


class BuildSlots:
    """A number of places, and a queue for them."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._places = places
        self._queue: list[_Waiting] = []
        #: Builds that hold a place; and those of them that are being cancelled.
        self._holders: list[Flight[Any]] = []
        self._giving_up: set[int] = set()
        self._numbers = itertools.count()

    def __repr__(self) -> str:
        return f"<BuildSlots {self._free} of {self._places} free, {len(self._queue)} waiting>"

    @asynccontextmanager
    async def place(self, report: Report, *, begun: bool = False) -> AsyncIterator[None]:
        """Hold a place during the block; a build that has `begun` goes before new ones."""
        if self._free and not self._queue:
            self._free -= 1
        else:
            await self._wait(report, begun)
        flight = current_flight()
        if flight is not None:
            self._holders.append(flight)
            flight.begin()
            self.make_way()
        try:
            yield
        finally:
            if flight is not None:
                self._holders.remove(flight)
                self._giving_up.discard(id(flight))
            self._pass_on()

    def make_way(self) -> None:
        """Cancel builds without waiters, as many as places are needed."""
        needed = sum(waiting.wanted for waiting in self._queue) - len(self._giving_up)
        for flight in [one for one in self._holders if not one.wanted]:
            if needed > 0 and id(flight) not in self._giving_up:
                needed -= 1
                self._giving_up.add(id(flight))
                # Called later: cancelling one flight may end another, perhaps the current one.
                asyncio.get_running_loop().call_soon(self._end, flight)

    def _end(self, flight: Flight[Any]) -> None:
        if flight.wanted:  # a waiter has come meanwhile
            self._giving_up.discard(id(flight))
            return
        _log.info("a build that no call waits for gives its place to one that a call waits for")
        flight.give_up()

    async def _wait(self, report: Report, begun: bool) -> None:
        turn = asyncio.get_running_loop().create_future()
        waiting = _Waiting(not begun, next(self._numbers), report, current_flight(), turn)
        bisect.insort(self._queue, waiting)
        self._tell()
        self.make_way()
        try:
            await turn
        except asyncio.CancelledError:
            # Cancelled just when its turn came: the place must be passed on.
            if turn.done() and not turn.cancelled():
                self._pass_on()
            elif waiting in self._queue:
                self._queue.remove(waiting)
                self._tell()
            raise

    def _pass_on(self) -> None:
        while self._queue:
            turn = self._queue.pop(self._queue.index(self._in_turn()[0])).turn
            if not turn.done():  # otherwise cancelled, and not awake yet to leave the queue
                turn.set_result(None)
                self._tell()
                return
        self._free += 1

    def _in_turn(self) -> list[_Waiting]:
        return sorted(self._queue, key=lambda waiting: not waiting.wanted)

    def _tell(self) -> None:
        for ahead, waiting in enumerate(self._in_turn()):
            if waiting.told != ahead:
                waiting.told = ahead
                waiting.report(
                    f"Waiting to be built: {self._places} under way, {ahead} more before this one"
                )
