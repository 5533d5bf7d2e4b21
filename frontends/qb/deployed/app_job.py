"""One job in an app worker: sends a request, and turns the records of its answer into results.

    job --AppRequest--> AppService --> worker
    outcome, items  <-- records <-- pieces of the answer
    credit, interrupt -->

Items are credited when the platform has accepted them, all other data at once: a generator waits
for a slow reader, and a large result does not.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from flashpool.frontends.qb.results import of_error
from flashpool.frontends.responses import is_json
from flashpool.pool._child import app_messages, job_messages, wire
from flashpool.pool.apps import AppEnd, AppRequest, AppService, EndKind, Headers
from flashpool.pool.calls import Outcome, Phase
from flashpool.pool.errors import FlashpoolError, Timeout, WorkerCrashed

#: Messages for ends that come without one.
_WORDS: Final = {
    EndKind.RAISED: "the app ended the job without a result",
    EndKind.CUT: "the app ended the job in the middle of its items",
}
_CONNECTION: Final = ("job", "", None, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """Options of a job and its answer."""

    item_limit: int
    result_limit: int
    #: Receives each item; None: items are not streamed.
    on_item: Callable[[bytes], None] | None = None
    #: Receives the job's output.
    on_output: Callable[[bytes], None] | None = None
    #: Whether the result of a generator is the list of its items.
    lists: bool = True
    #: Seconds that the job may run.
    limit_s: float | None = None


class _Told(msgspec.Struct):
    """A FAILED record."""

    error_type: str
    error: str
    user: bool = False


class AppJob:
    """A job that was given to an app; the sink of its request."""

    def __init__(self, service: AppService, options: JobOptions) -> None:
        self._service = service
        self._options = options
        self._reader = job_messages.RecordReader(options.item_limit, options.result_limit)
        #: Sizes of items that the platform has not accepted yet, oldest first.
        self._owed: deque[int] = deque()
        self._owed_bytes = 0
        self._unsent = memoryview(b"")
        self._number: int | None = None
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def begin(self, job_id: str, body: bytes) -> None:
        """Send the job to the app; ``body`` is the job as JSON."""
        first, rest = body[: app_messages.PIECE], memoryview(body)[app_messages.PIECE :]
        self._unsent = rest
        options = self._options
        yes_no = (job_messages.NO, job_messages.YES)
        fields = app_messages.request_fields(
            _CONNECTION,
            job_messages.JOB,
            "",
            job_id,
            b"",
            b"",
            (
                (job_messages.ITEM_LIMIT, b"%d" % options.item_limit),
                (job_messages.RESULT_LIMIT, b"%d" % options.result_limit),
                (job_messages.STREAM, yes_no[options.on_item is not None]),
                (job_messages.LIST, yes_no[options.lists]),
            ),
        )
        request = AppRequest(
            fields=fields, body=first, more=bool(rest), limit_s=options.limit_s, whole=True
        )
        number = self._service.request(request, self)
        if not self.outcome.done():
            self._number = number
            self.room(app_messages.WINDOW - len(first))

    # The sink.

    def room(self, size: int) -> None:
        """Send up to ``size`` further bytes of the body."""
        while size > 0 and self._unsent and self._number is not None:
            piece = self._unsent[: min(size, app_messages.PIECE)]
            self._unsent = self._unsent[len(piece) :]
            size -= len(piece)
            self._service.body(self._number, bytes(piece), bool(self._unsent))

    def response(self, _status: int, _headers: Headers, body: bytes, more: bool) -> None:
        """Receive the first piece of the answer."""
        self.piece(body, more)

    def piece(self, body: bytes, more: bool) -> None:
        """Receive a further piece of the answer."""
        if self.outcome.done():
            return
        before = self._owed_bytes
        try:
            for kind, record in self._reader.feed(body):
                self._take(kind, record)
        except wire.BadFrame:
            self._forged()
            return
        if self.outcome.done():
            return
        if not more:
            self._forged()
        elif (done := len(body) - (self._owed_bytes - before)) > 0:
            self._credit(done)

    def output(self, chunk: bytes) -> None:
        """Receive output of the job."""
        if self._options.on_output is not None:
            self._options.on_output(chunk)

    def ended(self, end: AppEnd) -> None:
        """End the job: the app sends nothing more, and the answer is incomplete."""
        if end.kind is EndKind.LATE and end.phase == Phase.RUN.value:
            self._set(of_error(self._too_long()))
            return
        message = end.message or _WORDS.get(end.kind, "the job has no result")
        error_type = end.error_type or "WorkerCrashed"
        self._set(_failed(error_type, f"{error_type}: {message}"))

    def _too_long(self) -> Timeout:
        limit_s = self._options.limit_s
        return Timeout(
            f"the job ran longer than its limit of {limit_s:g} s (FLASHPOOL_CALL_TIMEOUT_S)",
            phase=Phase.RUN.value,
            limit_s=limit_s,
        )

    # The records.

    def _take(self, kind: int, record: bytes) -> None:
        if kind == job_messages.ITEM and self._options.on_item is not None:
            size = len(record) + job_messages.HEAD_SIZE
            self._owed.append(size)
            self._owed_bytes += size
            self._options.on_item(record)
        elif kind == job_messages.RESULT and is_json(record):
            self._set(Outcome(body=record, format="json"))
        elif kind == job_messages.FAILED:
            try:
                told = msgspec.json.decode(record, type=_Told)
            except msgspec.DecodeError:
                self._forged()
                return
            error = told.error if told.user else f"{told.error_type}: {told.error}"
            self._set(_failed(told.error_type, error, from_user=told.user))
        else:
            self._forged()

    def _forged(self) -> None:
        # Only user code that found the worker's channel can have written this.
        self.end(WorkerCrashed("The worker's result message is malformed."), spares=True)

    def _set(self, outcome: Outcome) -> None:
        self._number = None
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    def _credit(self, size: int) -> None:
        if self._number is not None:
            self._service.credit(self._number, size)

    # Called by `AppJobRun`.

    def credit_item(self) -> None:
        """Credit the oldest item: the platform has accepted it."""
        if self._owed:
            size = self._owed.popleft()
            self._owed_bytes -= size
            self._credit(size)

    def end(self, cause: FlashpoolError, *, spares: bool) -> None:
        """End the job for this cause; ``spares``: without affecting other jobs of the worker."""
        number = self._number
        self._set(of_error(cause))
        if number is not None:
            self._service.interrupt(number, spares=spares)


def _failed(error_type: str, error: str, *, from_user: bool = False) -> Outcome:
    return Outcome(error_type=error_type, error=error, from_user=from_user)
