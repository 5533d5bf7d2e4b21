"""A submitted call: who hears of it meanwhile, and its outcome.

Service.submit --> Backend --> progress, output, items --> Watcher (only if there is one)
                       `-----> done (once) --------------> CallHandle.outcome
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, Protocol

from flashpool.pool.backend import Backend
from flashpool.pool.calls import Call, Outcome

from . import logs


class Prepared(NamedTuple):
    """A call that a request asks for."""

    call: Call
    #: What is odd about the request; told with its outcome.
    warnings: tuple[str, ...] = ()


class Watcher(Protocol):
    """Who hears of a call before it ends; on the pool's loop, and must not block."""

    def told(self, line: str) -> None:
        """Its environment is being made: a line of progress."""

    def environment_ready(self) -> None:
        """It waits for a slot. Not told of a call that names no packages."""

    def started(self) -> None:
        """A worker has it."""

    def output(self, chunk: bytes) -> None:
        """It wrote that to descriptor 1 or 2."""

    def item(self, body: bytes) -> None:
        """It yielded, and waits when a window of items has not been credited."""


class CallHandle:
    """A submitted call: the sink of its outcome."""

    __slots__ = ("_pool", "_prepared", "call_id", "failed", "outcome")

    wants_output = False

    def __init__(self, pool: Backend, outcome: asyncio.Future[Outcome], prepared: Prepared) -> None:
        self._pool = pool
        self._prepared = prepared
        self.outcome = outcome
        self.call_id = 0
        #: Told of its end, if it fails.
        self.failed: Callable[[Call, int, Outcome], None] = logs.tell_end

    def cancel(self, reason: str) -> None:
        """Have the call ended; its outcome still comes."""
        if not self.outcome.done():
            self._pool.cancel(self.call_id, reason)

    def told(self, line: str) -> None:
        """Not asked for."""

    def environment_ready(self) -> None:
        """Not asked for."""

    def output(self, chunk: bytes, *, stderr: bool = False) -> None:
        """Not asked for."""

    def item(self, body: bytes, fds: tuple[int, ...]) -> None:
        """Not asked for."""

    def done(self, outcome: Outcome) -> None:
        """The end; who waited may have left."""
        if warnings := self._prepared.warnings:
            outcome = replace(outcome, warnings=(*warnings, *outcome.warnings))
        if outcome.error_type is not None:
            self.failed(self._prepared.call, self.call_id, outcome)
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class WatchedCallHandle(CallHandle):
    """One that somebody watches meanwhile."""

    __slots__ = ("_watcher", "started")

    wants_output = True

    def __init__(
        self,
        pool: Backend,
        outcome: asyncio.Future[Outcome],
        prepared: Prepared,
        watcher: Watcher,
    ) -> None:
        super().__init__(pool, outcome, prepared)
        self._watcher = watcher
        self.started = watcher.started

    def told(self, line: str) -> None:
        """Pass it on."""
        self._watcher.told(line)

    def environment_ready(self) -> None:
        """Pass it on."""
        self._watcher.environment_ready()

    def output(self, chunk: bytes, *, stderr: bool = False) -> None:
        """Pass it on."""
        self._watcher.output(chunk)

    def item(self, body: bytes, fds: tuple[int, ...]) -> None:
        """Pass it on; items of flash calls are text, without descriptors."""
        self._watcher.item(body)
