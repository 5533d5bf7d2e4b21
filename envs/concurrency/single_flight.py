"""One piece of work, shared by all that wait for it.

    join(key) --+--> flight (task) --> result to every waiter
    join(key) --'      |
                       progress lines to every waiter's callback

The deadline or cancellation of one waiter does not affect the others. Without waiters, the work is
cancelled. If `goes_on` is set, work that has begun continues without waiters, for later requests,
and is cancelled when other work needs its place (`build_slots`).

A flight may wait for another flight. The other one is wanted if at the end of the chain is a waiter
outside all flights (`Flight.wanted`). Runs on one event loop.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections.abc import Callable, Coroutine, Hashable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from flashpool.envs.errors import BuildAbandoned, BuildTimeout, EnvironmentFailure

__all__ = ["Flight", "Report", "SingleFlight", "current_flight"]

_log = logging.getLogger(__name__)

T = TypeVar("T")
Report = Callable[[str], None]


@dataclass(eq=False, slots=True)
class Flight(Generic[T]):
    """Running work, and its waiters."""

    listeners: list[Report] = field(default_factory=list)
    #: Flights that wait for this one; None for each other waiter.
    waiters: list[Flight[Any] | None] = field(default_factory=list)
    task: asyncio.Task[T] | None = None
    #: Whether the work has done more than wait for its turn.
    begun: bool = False
    abandon: Callable[[], None] = lambda: None

    @property
    def wanted(self) -> bool:
        """Whether any waiter, direct or indirect, is outside all flights."""
        return any(waiter is None or waiter.wanted for waiter in self.waiters)

    def begin(self) -> None:
        """Mark the work as begun, with all flights that wait for it."""
        self.begun = True
        for waiter in self.waiters:
            if waiter is not None:
                waiter.begin()

    def give_up(self) -> None:
        """Cancel the work, and the flights that wait for it: the next request starts anew."""
        outer = [waiter for waiter in self.waiters if waiter is not None]
        for waiter in outer:
            waiter.give_up()
        if not outer:
            self.abandon()

    def report(self, line: str) -> None:
        for listener in list(self.listeners):
            try:
                listener(line)
            except Exception:  # noqa: BLE001  (one caller's callback must not end the build)
                _log.exception("a progress callback failed; it will not be called again")
                self.listeners.remove(listener)


_current: ContextVar[Flight[Any] | None] = ContextVar("flight", default=None)


def current_flight() -> Flight[Any] | None:
    """Return the flight that this task is part of."""
    return _current.get()


class SingleFlight(Generic[T]):
    """Flights by key."""

    def __init__(self, *, goes_on: bool = False, left: Callable[[], None] = lambda: None) -> None:
        """Set what happens when the last waiter leaves.

        ``goes_on``: work that has begun continues; ``left`` is called then.
        """
        self._flying: dict[Hashable, Flight[T]] = {}
        self._landing: set[asyncio.Task[T]] = set()
        self._goes_on = goes_on
        self._left = left

    def __repr__(self) -> str:
        waiting = {str(key)[:40]: len(flight.waiters) for key, flight in self._flying.items()}
        return f"<SingleFlight {waiting}>"

    async def join(
        self,
        key: Hashable,
        start: Callable[[Report], Coroutine[Any, Any, T]],
        *,
        progress: Report | None = None,
        deadline: float | None = None,
    ) -> T:
        """Wait for the work of this key; start the work if it is not running."""
        flight = self._flying.get(key) or self._take_off(key, start)
        if progress is not None:
            flight.listeners.append(progress)
        outer = current_flight()
        flight.waiters.append(outer)
        assert flight.task is not None
        try:
            return await _landed(flight.task, deadline)
        finally:
            flight.waiters.remove(outer)
            if progress in flight.listeners:
                flight.listeners.remove(progress)
            if not flight.waiters and not flight.task.done():
                self._leave(key, flight)

    def _leave(self, key: Hashable, flight: Flight[T]) -> None:
        if self._goes_on and flight.begun:
            _log.info("no call waits for a build any more: it continues")
            self._left()
        else:
            self._abandon(key, flight)

    def _take_off(
        self, key: Hashable, start: Callable[[Report], Coroutine[Any, Any, T]]
    ) -> Flight[T]:
        flight: Flight[T] = Flight()

        async def fly() -> T:
            _current.set(flight)
            return await start(flight.report)

        flight.task = asyncio.get_running_loop().create_task(fly())
        flight.abandon = lambda: self._abandon(key, flight)
        self._flying[key] = flight
        self._landing.add(flight.task)
        flight.task.add_done_callback(lambda task: self._down(key, flight, task))
        return flight

    def _down(self, key: Hashable, flight: Flight[T], task: asyncio.Task[T]) -> None:
        self._landing.discard(task)
        if self._flying.get(key) is flight:
            del self._flying[key]
        if not task.cancelled():
            task.exception()  # marks the error as seen, so that asyncio does not report it

    def _abandon(self, key: Hashable, flight: Flight[T]) -> None:
        """Cancel the work; new requests start afresh rather than join it."""
        if self._flying.get(key) is flight:
            del self._flying[key]
        assert flight.task is not None
        flight.task.cancel()

    async def close(self) -> None:
        """Cancel all work, and wait until it has ended."""
        for task in list(self._landing):
            task.cancel()
        if self._landing:
            await asyncio.wait(list(self._landing))


async def _landed(task: asyncio.Task[T], deadline: float | None) -> T:
    limit = None if deadline is None else max(0.0, deadline - time.monotonic())
    done, _ = await asyncio.wait({task}, timeout=limit)
    if not done:
        raise BuildTimeout(
            "The environment was not ready before the caller's deadline",
            advice="give it more time, or build it beforehand",
        )
    if task.cancelled():
        raise BuildAbandoned("The build was cancelled", advice="send the request again")
    failure = task.exception()
    if isinstance(failure, EnvironmentFailure):
        raise copy.copy(failure) from failure  # each waiter gets a traceback of its own
    return task.result()
