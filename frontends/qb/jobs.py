"""Parses the answer of a job-take into jobs, without losing any.

    body --> [object | list] --> each: id, input, policy --> Job, with its input or a problem

An input stays the bytes that arrived; the service parses it, like the body of a request. Text that
is not valid JSON (NaN, half a surrogate pair) or is nested too deeply is split by its brackets
alone. Then the job's id is known, and only this job fails, not its neighbours.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import Raw

_log = logging.getLogger(__name__)

_ABSENT: Final = Raw(b"")
_ANSWER: Final = msgspec.json.Decoder(Raw)
#: A time limit of more milliseconds is taken for a mistake, and ignored.
_LONGEST_MS: Final = 366 * 24 * 3600 * 1000.0
#: Most characters of an id, because URLs contain it.
_ID_LIMIT: Final = 1000
#: A string, or a structural character of JSON; inside another value only brackets matter.
_STRING: Final = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_OUTER: Final = re.compile(_STRING + rb"|[\[\]{}:,]", re.DOTALL)
_INNER: Final = re.compile(_STRING + rb"|[\[\]{}]", re.DOTALL)
_OPENING, _CLOSING, _BETWEEN = b"[{", b"]}", b",:"


class NoJobs(ValueError):
    """The answer of a job-take cannot be read: jobs in it are lost."""


class NothingRuns(Exception):
    """No job will ever run here, so this process must exit; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job. ``input`` is JSON, perhaps ``null``, or None with the reason in ``problem``."""

    id: str
    input: bytes | None = None
    problem: str = ""
    #: Seconds after which the platform gives the job up; None: the job does not say.
    limit_s: float | None = None


class _Taken(msgspec.Struct, frozen=True, gc=False):
    """The fields of a job that matter here; others (webhook, ...) are ignored."""

    id: Raw = _ABSENT
    input: Raw = _ABSENT
    policy: Raw = _ABSENT


def decode(body: bytes) -> list[Job]:
    """Return the jobs of an answer, in its order.

    Raises:
        NoJobs: the answer is not valid JSON.
    """
    try:
        raw = bytes(_ANSWER.decode(body))
        entries = msgspec.json.decode(raw, type=list[Raw]) if raw[:1] == b"[" else [Raw(raw)]
        found = [_job(bytes(entry)) for entry in entries]
    except (msgspec.DecodeError, RecursionError):
        pieces = _pieces(body)
        is_list = body.lstrip()[:1] == b"["
        found = [_job(piece) for piece in pieces] if is_list else [_job(body, pieces)]
    return [job for job in found if job is not None]


def of_value(job: Any) -> Job | None:
    """Return a job of the SDK's local modes, from its decoded value."""
    try:
        return _job(json.dumps(job).encode())
    except (TypeError, ValueError, RecursionError) as error:
        job_id = job.get("id") if isinstance(job, dict) else None
        if job_id is None:
            _log.error("A job was taken but is not valid JSON, and is lost: %s", error)
            return None
        return Job(id=str(job_id)[:_ID_LIMIT], problem=f"the input is not valid JSON: {error}")


def _job(raw: bytes, pieces: list[bytes] | None = None) -> Job | None:
    """Parse a job; ``pieces``: its pieces, if it was split before."""
    try:
        taken = _named(pieces) if pieces else _read(raw)
        job_id = _id(taken.id)
    except (NoJobs, msgspec.DecodeError, UnicodeError) as error:
        # Without its id, a job cannot be reported.
        _log.error("A job was taken but cannot be read, and is lost: %s", error)
        return None
    limit_s = _limit_s(taken.policy)
    if not bytes(taken.input):
        return Job(id=job_id, problem="the job has no input", limit_s=limit_s)
    return Job(id=job_id, input=bytes(taken.input), limit_s=limit_s)


def _read(raw: bytes) -> _Taken:
    try:
        return msgspec.json.decode(raw, type=_Taken)
    except (msgspec.DecodeError, RecursionError):
        if raw[:1] != b"{":
            raise
        return _named(_pieces(raw))


def _named(pieces: list[bytes]) -> _Taken:
    """Return the fields of an object that was split into pieces."""
    found = dict(zip(pieces[::2], pieces[1::2], strict=False))
    names = (b'"id"', b'"input"', b'"policy"')
    return _Taken(*(Raw(found.get(name, b"")) for name in names))


def _pieces(text: bytes) -> list[bytes]:
    """Return the texts between commas and colons of the outermost array or object."""
    pieces: list[bytes] = []
    depth = begin = end = 0
    while found := (_OUTER if depth < 2 else _INNER).search(text, end):
        mark, end = text[found.start()], found.end()
        if mark in _OPENING:
            depth += 1
            begin = end if depth == 1 else begin
        elif depth == 1 and mark in _BETWEEN + _CLOSING:
            pieces.append(text[begin : found.start()].strip())
            begin = end
        if mark in _CLOSING:
            depth -= 1
            if depth <= 0:
                break
    if depth or not pieces or text[end:].strip():
        raise NoJobs("not a JSON array or object")
    return pieces


def _id(raw: Raw) -> str:
    value = msgspec.json.decode(raw, type=str | int | None)
    name = "" if value is None else str(value)
    if not 0 < len(name) <= _ID_LIMIT:
        raise msgspec.DecodeError("it has no usable id")
    return name


def _limit_s(policy: Raw) -> float | None:
    """Return ``policy.executionTimeout`` (milliseconds) in seconds; None if it is invalid."""
    try:
        value = msgspec.json.decode(policy, type=dict[str, Any]).get("executionTimeout")
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value / 1000 if 0 < value <= _LONGEST_MS else None
