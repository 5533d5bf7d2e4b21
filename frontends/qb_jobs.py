"""What the platform hands out: the answer of a job-take to jobs, none of them lost on the way.

    body --> [object | list] --> each: id, input, policy --> Job | its id and what is wrong

An input stays the bytes it came as; the service reads it, like the body of a request. Where
the answer as a whole is no JSON by the book (NaN is the usual reason), Python's own reader
takes it apart, so that one such job does not take its neighbours with it.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import Raw

log = logging.getLogger(__name__)

_NULL: Final = Raw(b"null")
_ANSWER: Final = msgspec.json.Decoder(Raw)
#: A job beyond which a number of milliseconds is a mistake.
_LONGEST_MS: Final = 366 * 24 * 3600 * 1000.0
_ID_LIMIT: Final = 1000


class NoJobs(ValueError):
    """The answer of a job-take cannot be read: whatever was in it is lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job. ``input`` is JSON, or None with the reason in ``problem``."""

    id: str
    input: bytes | None = None
    problem: str = ""
    #: Seconds after which the platform gives it up, if the job says so.
    limit_s: float | None = None


class _Taken(msgspec.Struct, frozen=True, gc=False):
    """The fields we use; the rest (webhook, ...) is the platform's affair."""

    id: Raw = _NULL
    input: Raw = _NULL
    policy: Raw = _NULL


def decode(body: bytes) -> list[Job]:
    """The jobs of an answer, in its order.

    Raises:
        NoJobs: it is no JSON.
    """
    try:
        raw = bytes(_ANSWER.decode(body))
        entries = msgspec.json.decode(raw, type=list[Raw]) if raw[:1] == b"[" else [Raw(raw)]
    except (msgspec.DecodeError, RecursionError):
        return _lenient(body)
    return [job for entry in entries if (job := _job(entry)) is not None]


def _lenient(body: bytes) -> list[Job]:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise NoJobs(f"{type(error).__name__}: {error}") from None
    found = [of_value(one) for one in (answer if isinstance(answer, list) else [answer])]
    return [job for job in found if job is not None]


def of_value(job: Any) -> Job | None:
    """A job as the SDK's local modes have it: decoded already, or never JSON at all."""
    try:
        return _job(Raw(json.dumps(job, allow_nan=False).encode()))
    except (TypeError, ValueError, RecursionError) as error:
        job_id = job.get("id") if isinstance(job, dict) else None
        if job_id is None:
            log.error("Taken, and lost: a job that is no JSON: %s", error)  # noqa: TRY400 - told
            return None
        return Job(id=str(job_id)[:_ID_LIMIT], problem=f"the input is no JSON: {error}")


def _job(raw: Raw) -> Job | None:
    try:
        taken = msgspec.json.decode(raw, type=_Taken)
        job_id = _id(taken.id)
    except (msgspec.DecodeError, UnicodeError) as error:
        log.error("Taken, and lost: a job that cannot be read: %s", error)  # noqa: TRY400 - told
        return None
    if not job_id:
        log.error("Taken, and lost: a job without an id, so that nothing can be said of it")
        return None
    limit_s = _limit_s(taken.policy)
    if bytes(taken.input) == b"null":
        return Job(id=job_id, problem="the job has no input", limit_s=limit_s)
    return Job(id=job_id, input=bytes(taken.input), limit_s=limit_s)


def _id(raw: Raw) -> str:
    value = msgspec.json.decode(raw, type=str | int | None)
    return "" if value is None else str(value)[:_ID_LIMIT]


def _limit_s(policy: Raw) -> float | None:
    """``policy.executionTimeout``, milliseconds; what is none counts as not said."""
    try:
        value = msgspec.json.decode(policy, type=dict[str, Any]).get("executionTimeout")
    except msgspec.DecodeError:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value / 1000 if 0 < value <= _LONGEST_MS else None
