"""One piece of work, however many wait for it.

    join(key) --+--> flight (task) --> result to every waiter
    join(key) --'      |
                       progress lines to every waiter's callback

A waiter's deadline or cancellation does not hurt the others. When no waiter is
left, the work is cancelled: nobody pays for what nobody wants.
Used on one event loop.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from flashpool.envs.errors import BuildAbandoned, BuildTimeout, EnvironmentFailure

__all__ = ["Report", "SingleFlight"]

_log = logging.getLogger(__name__)

T = TypeVar("T")
Report = Callable[[str], None]


@dataclass(eq=False, slots=True)
class _Flight(Generic[T]):
    listeners: list[Report] = field(default_factory=list)
    waiting: int = 0
    task: asyncio.Task[T] | None = None

    def report(self, line: str) -> None:
        for listener in list(self.listeners):
            try:
                listener(line)
            except Exception:  # noqa: BLE001  (a caller's callback must not end the others' build)
                _log.exception("a progress callback failed; it is called no more")
                self.listeners.remove(listener)


class SingleFlight(Generic[T]):
    """Flights by key."""

    def __init__(self) -> None:
        self._flying: dict[Hashable, _Flight[T]] = {}
        self._landing: set[asyncio.Task[T]] = set()

    def __repr__(self) -> str:
        waiting = {str(key)[:40]: flight.waiting for key, flight in self._flying.items()}
        return f"<SingleFlight {waiting}>"

    async def join(
        self,
        key: Hashable,
        start: Callable[[Report], Coroutine[Any, Any, T]],
        *,
        progress: Report | None = None,
        deadline: float | None = None,
    ) -> T:
        """Wait for the work of this key; start it if it is not under way."""
        flight = self._flying.get(key) or self._take_off(key, start)
        if progress is not None:
            flight.listeners.append(progress)
        flight.waiting += 1
        assert flight.task is not None
        try:
            return await _landed(flight.task, deadline)
        finally:
            flight.waiting -= 1
            if progress in flight.listeners:
                flight.listeners.remove(progress)
            if not flight.waiting and not flight.task.done():
                self._abandon(key, flight)

    def _take_off(
        self, key: Hashable, start: Callable[[Report], Coroutine[Any, Any, T]]
    ) -> _Flight[T]:
        flight: _Flight[T] = _Flight()
        flight.task = asyncio.get_running_loop().create_task(start(flight.report))
        self._flying[key] = flight
        self._landing.add(flight.task)
        flight.task.add_done_callback(lambda task: self._down(key, flight, task))
        return flight

    def _down(self, key: Hashable, flight: _Flight[T], task: asyncio.Task[T]) -> None:
        self._landing.discard(task)
        if self._flying.get(key) is flight:
            del self._flying[key]
        if not task.cancelled():
            task.exception()  # looked at, so that an abandoned failure is not reported as lost

    def _abandon(self, key: Hashable, flight: _Flight[T]) -> None:
        """Cancel, and let newcomers start afresh rather than join a dying flight."""
        if self._flying.get(key) is flight:
            del self._flying[key]
        assert flight.task is not None
        flight.task.cancel()

    async def close(self) -> None:
        """Cancel everything and wait until it has ended."""
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
        raise BuildAbandoned("The build was cancelled", advice="ask again")
    failure = task.exception()
    if isinstance(failure, EnvironmentFailure):
        raise copy.copy(failure) from failure  # each waiter gets a traceback of its own
    return task.result()
