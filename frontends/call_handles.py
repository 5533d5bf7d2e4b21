"""A submitted call: who hears of it meanwhile, and its outcome.

Service.submit --> Backend --> progress, output, items --> Watcher (only if there is one)
                       `-----> done (once) --------------> CallHandle.outcome
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, Protocol

from flashpool.pool import call_ids
from flashpool.pool.backend import Backend
from flashpool.pool.calls import Call, Outcome
from flashpool.pool.errors import Cancelled, FlashpoolError

from .logs.calls import OutputLines, tell_end
from .responses import outcome_of

#: What to run in place of a call that ended so; None: that is its end.
Again = Callable[[Call, Outcome], "Call | None"]


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

    __slots__ = ("_again", "_pool", "_prepared", "call_id", "cancelled", "failed", "outcome")

    wants_output = False

    def __init__(
        self,
        pool: Backend,
        outcome: asyncio.Future[Outcome],
        prepared: Prepared,
        again: Again | None = None,
    ) -> None:
        """``again`` says what to run in place of a call that ended, if anything."""
        self._pool = pool
        self._prepared = prepared
        self._again = again
        #: Why it was cancelled; nobody hears of that between two calls.
        self.cancelled = ""
        self.outcome = outcome
        self.call_id = 0
        #: Told of its end, if it fails.
        self.failed: Callable[[Call, int, Outcome], None] = tell_end

    def cancel(self, reason: str) -> None:
        """Have the call ended; its outcome still comes."""
        if not self.outcome.done():
            self.cancelled = reason
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
        if outcome.error_type is not None and self._again is not None:
            again = self._again(self._prepared.call, outcome)
            if again is not None:
                self._prepared = self._prepared._replace(call=again)
                asyncio.get_running_loop().call_soon(self._resubmit)
                return
        if warnings := self._prepared.warnings:
            outcome = replace(outcome, warnings=(*warnings, *outcome.warnings))
        if outcome.error_type is not None:
            self.failed(self._prepared.call, self.call_id, outcome)
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    def _resubmit(self) -> None:
        """Hand the call to the pool that takes the place of one that ended."""
        try:
            if self.cancelled:
                raise Cancelled(f"the call was cancelled: {self.cancelled}", reason=self.cancelled)
            self.call_id = self._pool.submit(self._prepared.call, self)
        except FlashpoolError as error:
            self._again = None
            self.done(outcome_of(error))


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
        again: Again | None = None,
    ) -> None:
        super().__init__(pool, outcome, prepared, again)
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


class LoggedCallHandle(CallHandle):
    """One whose output the log repeats (`FLASHPOOL_LOG_OUTPUT_KB_S`)."""

    __slots__ = ("_lines", "_rate")

    wants_output = True

    def __init__(
        self,
        pool: Backend,
        outcome: asyncio.Future[Outcome],
        prepared: Prepared,
        bytes_a_second: int,
        again: Again | None = None,
    ) -> None:
        super().__init__(pool, outcome, prepared, again)
        self._rate = bytes_a_second
        #: Made with the first piece: the call has its id by then.
        self._lines: OutputLines | None = None

    def output(self, chunk: bytes, *, stderr: bool = False) -> None:
        """It wrote that."""
        if self._lines is None:
            call, name = self._prepared.call, call_ids.name_of(self.call_id)
            self._lines = OutputLines(call.label, name, call.request_id, self._rate)
        self._lines.feed(chunk)

    def done(self, outcome: Outcome) -> None:
        """The end."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None
        super().done(outcome)
