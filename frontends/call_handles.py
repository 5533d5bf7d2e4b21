"""Handles of submitted calls: who is notified while a call runs, and the call's outcome.

Service.submit --> Backend --> progress, output, items --> Watcher (only if there is one)
                       `-----> done (once) --------------> CallHandle.outcome
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from flashpool.pool import call_ids
from flashpool.pool.backend import Backend
from flashpool.pool.calls import Call, Outcome
from flashpool.pool.errors import Cancelled, FlashpoolError

from .logs.calls import OutputLines, tell_end
from .responses import outcome_of

if TYPE_CHECKING:
    from .telemetry.tracing import CallSpan

#: The trace context of a caller that sends none.
NO_TRACE: Final[Mapping[str, str]] = MappingProxyType({})
#: Returns the call to run in place of one with this outcome; None: the outcome stands.
Again = Callable[[Call, Outcome], "Call | None"]


class Prepared(NamedTuple):
    """A call made from a request, before it is submitted."""

    call: Call
    #: Oddities of the request; they are added to the warnings of the outcome.
    warnings: tuple[str, ...] = ()
    #: The call's place in its caller's trace, if calls are traced and the caller sent
    #: ``traceparent`` and ``tracestate``.
    caller: Mapping[str, str] = NO_TRACE


class Watcher(Protocol):
    """Receives the events of one call. Methods run on the pool's loop and must not block."""

    def told(self, line: str) -> None:
        """The call's environment is being built: ``line`` reports progress."""

    def environment_ready(self) -> None:
        """The environment is ready, and the call waits for a slot.

        Not called for a call that names no packages.
        """

    def started(self) -> None:
        """A worker has received the call."""

    def output(self, chunk: bytes) -> None:
        """The call wrote ``chunk`` to descriptor 1 or 2."""

    def item(self, body: bytes) -> None:
        """The call yielded an item. The generator waits while a full window lacks credit."""


class CallHandle:
    """A submitted call. The backend notifies this handle of the outcome."""

    __slots__ = (
        "_again",
        "_pool",
        "_prepared",
        "annotated",
        "call_id",
        "cancelled",
        "failed",
        "outcome",
        "span",
    )

    wants_output = False

    def __init__(self, pool: Backend, prepared: Prepared, again: Again | None = None) -> None:
        """``again`` returns a call to run in place of one that failed, or None."""
        self._pool = pool
        self._prepared = prepared
        self._again = again
        #: Why the call was cancelled. Between two calls (`Again`), the backend has none to cancel.
        self.cancelled = ""
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.call_id = 0
        #: Called when the call has failed.
        self.failed: Callable[[Call, int, Outcome], None] = tell_end
        #: The span of the call; None if calls are not traced.
        self.span: CallSpan | None = None
        #: Adds where else the call's instance lives; None: no instance, or no volume.
        self.annotated: Callable[[Outcome], Outcome] | None = None

    def cancel(self, reason: str) -> None:
        """Cancel the call. `outcome` is set as soon as the call has finished."""
        if not self.outcome.done():
            self.cancelled = reason
            self._pool.cancel(self.call_id, reason)

    def told(self, line: str) -> None:
        """Ignore: this call has no watcher."""

    def environment_ready(self) -> None:
        """Ignore: this call has no watcher."""

    def output(self, chunk: bytes, *, stderr: bool = False) -> None:
        """Ignore: this call has no watcher."""

    def item(self, body: bytes, fds: tuple[int, ...]) -> None:
        """Ignore: this call has no watcher."""

    def done(self, outcome: Outcome) -> None:
        """Set the outcome, or submit the call that takes its place.

        `outcome` may be cancelled already, if its client has disconnected.
        """
        if outcome.error_type is not None and self._again is not None:
            again = self._again(self._prepared.call, outcome)
            if again is not None:
                self._prepared = self._prepared._replace(call=again)
                asyncio.get_running_loop().call_soon(self._resubmit)
                return
        if self.annotated is not None:
            outcome = self.annotated(outcome)
        if warnings := self._prepared.warnings:
            outcome = replace(outcome, warnings=(*warnings, *outcome.warnings))
        if outcome.error_type is not None:
            self.failed(self._prepared.call, self.call_id, outcome)
        if self.span is not None:
            self.span.ended(self._prepared.call, self.call_id, outcome)
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    def _resubmit(self) -> None:
        """Submit the call that takes the place of a finished one."""
        try:
            if self.cancelled:
                raise Cancelled(f"the call was cancelled: {self.cancelled}", reason=self.cancelled)
            self.call_id = self._pool.submit(self._prepared.call, self)
        except FlashpoolError as error:
            self._again = None
            self.done(outcome_of(error))


class WatchedCallHandle(CallHandle):
    """A handle that passes the events of its call to a `Watcher`."""

    __slots__ = ("_watcher", "started")

    wants_output = True

    def __init__(
        self, watcher: Watcher, pool: Backend, prepared: Prepared, again: Again | None = None
    ) -> None:
        super().__init__(pool, prepared, again)
        self._watcher = watcher
        self.started = watcher.started

    def told(self, line: str) -> None:
        """Pass the event to the watcher."""
        self._watcher.told(line)

    def environment_ready(self) -> None:
        """Pass the event to the watcher."""
        self._watcher.environment_ready()

    def output(self, chunk: bytes, *, stderr: bool = False) -> None:
        """Pass the event to the watcher."""
        self._watcher.output(chunk)

    def item(self, body: bytes, fds: tuple[int, ...]) -> None:
        """Pass the item to the watcher. Items of flash calls are text, without descriptors."""
        self._watcher.item(body)


class LoggedCallHandle(CallHandle):
    """A handle that copies the output of its call to the log (`FLASHPOOL_LOG_OUTPUT_KB_S`)."""

    __slots__ = ("_lines", "_rate")

    wants_output = True

    def __init__(
        self, bytes_a_second: int, pool: Backend, prepared: Prepared, again: Again | None = None
    ) -> None:
        super().__init__(pool, prepared, again)
        self._rate = bytes_a_second
        #: Created with the first piece of output, when the call has its id.
        self._lines: OutputLines | None = None

    def output(self, chunk: bytes, *, stderr: bool = False) -> None:
        """Copy ``chunk`` to the log."""
        if self._lines is None:
            call, name = self._prepared.call, call_ids.name_of(self.call_id)
            self._lines = OutputLines(call, name, self._rate)
        self._lines.feed(chunk)

    def done(self, outcome: Outcome) -> None:
        """Flush the last line of output to the log, then settle the outcome."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None
        super().done(outcome)
