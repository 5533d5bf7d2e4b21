"""The task of a pod: at most one runs, its response is kept, and its timeout may change later.

submit --> RUNNING --finishes in any way--> DONE, with the response
              `-- timeout --> its processes are stopped --> DONE, and the response says so
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from dataclasses import replace
from typing import Final

import msgspec
from msgspec import Raw

from flashpool.frontends.call_handles import CallHandle
from flashpool.frontends.service import Service
from flashpool.pool.calls import Outcome, Phase
from flashpool.pool.errors import FlashpoolError, InvalidRequest, Timeout

__all__ = ["Busy", "TaskSlot", "read_timeout"]

_TIMEOUT: Final = "timeout"
_Fields = dict[str, Raw]


class Busy(Exception):
    """A task runs already."""


class TaskSlot:
    """The task of this pod."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._call: CallHandle | None = None
        self._response: bytes | None = None
        self._limit_s: float | None = None
        self._clock: asyncio.TimerHandle | None = None
        self._answering: asyncio.Task[bytes] | None = None
        #: Since when no task has run, on the monotonic clock.
        self.idle_since = time.monotonic()

    @property
    def is_running(self) -> bool:
        """Return whether a task runs."""
        return self._answering is not None and not self._answering.done()

    def submit(self, body: bytes) -> float | None:
        """Start a task; return its timeout.

        Raises:
            Busy: another task runs.
            FlashpoolError: the request is refused.
        """
        if self.is_running:
            raise Busy
        request, limit_s = _without_timeout(body)
        self._call = call = self._service.submit(self._service.prepare(request))
        self._response = None
        self._limit_s = None
        self._answering = asyncio.ensure_future(self._answer(call))
        self.limit(limit_s)
        return limit_s

    def limit(self, limit_s: float | None) -> None:
        """Cancel the task if it does not finish within ``limit_s`` from now; None: no limit."""
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
        if limit_s is not None and self.is_running:
            loop = asyncio.get_running_loop()
            self._clock = loop.call_later(limit_s, self._late, limit_s)

    async def wait(self) -> bytes:
        """Wait for the task that was submitted last; return its response."""
        assert self._answering is not None
        return await asyncio.shield(self._answering)

    def result(self) -> bytes:
        """Return the task's state, and its response once it has finished."""
        if self._response is not None:
            return b'{"status":"DONE","response":%b}' % self._response
        return b'{"status":"RUNNING"}' if self.is_running else b'{"status":"NONE"}'

    def _late(self, limit_s: float) -> None:
        self._limit_s = limit_s
        if self._call is not None:
            self._call.cancel(f"it ran longer than its timeout of {limit_s:g} s")

    async def _answer(self, call: CallHandle) -> bytes:
        outcome = await call.outcome
        self.limit(None)
        if self._limit_s is not None and outcome.error_type == "Cancelled":
            outcome = _timed_out(outcome, self._limit_s)
        self._response = response = self._service.answer(outcome).body
        self.idle_since = time.monotonic()
        return response


def _timed_out(outcome: Outcome, limit_s: float) -> Outcome:
    late = Timeout(
        f"the task ran longer than its timeout of {limit_s:g} s, and was ended with all it had started",
        phase=Phase.RUN.value,
        limit_s=limit_s,
    )
    return replace(
        outcome, error_type=type(late).__name__, error=late.message, details=late.details
    )


def _without_timeout(body: bytes) -> tuple[bytes, float | None]:
    """Return the request without the task's own timeout field, and that timeout."""
    fields = _read(body)
    limit_s = _seconds(fields.pop(_TIMEOUT, None))
    return msgspec.json.encode(fields), limit_s


def read_timeout(body: bytes) -> float | None:
    """Return the timeout of ``POST /timeout``.

    Raises:
        InvalidRequest: the timeout is missing or invalid.
    """
    fields = _read(body)
    if _TIMEOUT not in fields:
        raise InvalidRequest("timeout is required: seconds, or null")
    return _seconds(fields[_TIMEOUT])


def _read(body: bytes) -> _Fields:
    try:
        return msgspec.json.decode(body, type=_Fields)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidRequest(f"The body is not a JSON object: {error}") from None


def _seconds(raw: Raw | None) -> float | None:
    if raw is None or bytes(raw) == b"null":
        return None
    try:
        seconds: float = msgspec.json.decode(raw, type=int | float)
    except msgspec.DecodeError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise InvalidRequest("timeout must be a number of seconds, 0 or more, or null")
    return seconds


def acknowledgement(limit_s: float | None, **fields: str) -> bytes:
    """Return an answer that repeats the timeout, which the client requires."""
    return json.dumps({**fields, _TIMEOUT: limit_s}).encode()


def refusal(error: FlashpoolError) -> bytes:
    """Return an answer with the reason of a refusal."""
    return json.dumps({"error": error.message, "error_type": type(error).__name__}).encode()
