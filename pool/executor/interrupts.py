"""Cancels the calls that a thread waits for when Ctrl-C interrupts the wait.

In a script, the interrupt ends the program. At a prompt or in a notebook it ends the line or cell,
and the calls that it waited for would continue unseen. The pool stays usable.

`CallFuture.result`, `map` and iterators catch the interrupt of their own waits. The functions
`concurrent.futures.wait` and `as_completed` append a waiter to each future and then wait for the
waiter's event, which `Waiters` replaces by an event that cancels calls.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any, Protocol

from . import stopping


class WaitedFor(Protocol):
    """A call that a thread waits for."""

    def running(self) -> bool:
        """Return whether a worker has the call."""

    def cancel(self) -> bool:
        """Cancel the call; return False if it has ended."""


def cancel(calls: Iterable[WaitedFor]) -> None:
    """Cancel these calls, because waiting for them was interrupted, and report that."""
    running = waiting = 0
    for call in calls:
        has_worker = call.running()
        if call.cancel():
            running += has_worker
            waiting += not has_worker
    stopping.say_what_ended("KeyboardInterrupt", stopping.OpenCalls(running, waiting))


class Waiters(list[Any]):
    """The waiters of one future."""

    __slots__ = ("_future",)

    def __init__(self, future: Future[Any]) -> None:
        self._future = weakref.ref(future)

    def append(self, waiter: Any) -> None:
        """Register a waiter for this future, and perhaps others. The caller holds their locks."""
        super().append(waiter)
        event = getattr(waiter, "event", None)
        if type(event) is threading.Event and not event.is_set():
            # No thread waits for the event yet, and no thread can set it: both need the futures'
            # locks.
            event = waiter.event = _CancellingEvent()
        if isinstance(event, _CancellingEvent):
            event.futures.append(self._future)


class _CancellingEvent(threading.Event):
    """Cancels its futures when the wait is interrupted."""

    def __init__(self) -> None:
        super().__init__()
        self.futures: list[weakref.ref[Future[Any]]] = []

    def wait(self, timeout: float | None = None) -> bool:
        """Wait like any event; an interrupt cancels the calls."""
        try:
            return super().wait(timeout)
        except KeyboardInterrupt:
            futures = [reference() for reference in self.futures]
            cancel(future for future in futures if future is not None)
            raise
