"""From the outcome of a job to a report that the platform takes.

    outcome --service--> answer --> {"output": {fields but error}, "error": ...}
               |
               `-- too large: spilled to the volume, else ResultTooLarge; a failure is cut

The platform tells a failure by `error` beside the output, which is what the SDK lifts out of
what a handler returns. Reports are put together from spans of the answer, which is not read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import msgspec
from msgspec import Raw

from flashpool.pool.calls import Outcome
from flashpool.pool.errors import FlashpoolError, ResultTooLarge

from .answers import outcome_of
from .qb_outbox import Report
from .qb_spill import Spill
from .service import Service

_log = logging.getLogger(__name__)

#: Characters left of an output, and of an error, that make a failure too large.
_OUTPUT_KEPT: Final = 64 * 1024
_ERROR_KEPT: Final = 256 * 1024
_WORDS: Final = 200
_SPILL_HINT: Final = (
    " FLASHPOOL_RESULT_SPILL=yes has results up to FLASHPOOL_SPILL_LIMIT_MB written to the volume."
)
_Fields = dict[str, Raw]


class Results:
    """Makes reports that are within the platform's limit."""

    def __init__(self, service: Service, limit: int, spill: Spill | None) -> None:
        self._service = service
        self._limit = limit
        self._spill = spill
        #: Further fields of every report: the SDK's debugger.
        self.more: Callable[[], dict[str, Any]] | None = None

    async def report(self, job_id: str, outcome: Outcome, *, streamed: bool) -> Report:
        """The report of a job that ended."""
        fields = self.fields(outcome)
        if self.more is not None:
            fields |= {name: _raw(value) for name, value in self.more().items()}
        body = _body(fields)
        if len(body) > self._limit:
            body = _body(await self._fitting(job_id, outcome, fields, len(body)))
        return Report(job_id=job_id, body=body, streamed=streamed)

    def fields(self, outcome: Outcome) -> _Fields:
        """The answer's fields, as spans."""
        if outcome.error_type == "ResultTooLarge" and not outcome.from_user and not self._spill:
            outcome = replace(outcome, error=f"{outcome.error}{_SPILL_HINT}")
        return msgspec.json.decode(self._service.answer(outcome).body, type=_Fields)

    def refused(self, report: Report) -> Report:
        """In place of one that the platform calls too large: its ends, if that is less."""
        cut = _body(_cut(_fields(report.body)))
        if len(cut) < len(report.body):
            return replace(report, body=cut)
        error = ResultTooLarge(
            f"The platform refuses the report of {len(report.body)} bytes as too large. Return "
            f"less, or lower FLASHPOOL_JOB_RESULT_LIMIT_MB below its limit.{_SPILL_HINT}",
            size=len(report.body),
        )
        return replace(report, body=_body(self.fields(of_error(error))))

    async def _fitting(self, job_id: str, outcome: Outcome, fields: _Fields, size: int) -> _Fields:
        cut = _cut(fields)
        if not outcome.ok or len(_body(cut)) <= self._limit:
            return cut
        problem = ""
        if self._spill is not None:
            try:
                outcome, reference = await asyncio.to_thread(self._spill.spilled, job_id, outcome)
            except OSError as error:
                _log.error("Job %s: its result cannot be written: %s", job_id, error)
                problem = f" It cannot be written to the volume: {error}."
            else:
                spilled = {**self.fields(outcome), "spilled": _raw(reference)}
                return spilled if len(_body(spilled)) <= self._limit else _cut(spilled)
        too_large = ResultTooLarge(
            f"The report of the job has {size} bytes, and the platform takes {self._limit} "
            f"(FLASHPOOL_JOB_RESULT_LIMIT_MB).{problem} Return less, or write it to the volume "
            "or an object store and return where it is.",
            size=size,
            limit=self._limit,
        )
        failed = self.fields(replace(of_error(too_large), receipt=outcome.receipt))
        return _cut({**failed, "stdout": fields["stdout"]})


def of_error(error: FlashpoolError) -> Outcome:
    """The outcome of a job that did not become a call; clients show its `error` alone."""
    outcome = outcome_of(error)
    return replace(outcome, error=f"{outcome.error_type}: {error.message}")


def _body(fields: _Fields) -> bytes:
    output = {name: value for name, value in fields.items() if name != "error"}
    error = fields.get("error")
    failed = error is not None and bytes(error) != b"null"
    return msgspec.json.encode({"output": output, "error": error} if failed else {"output": output})


def _fields(body: bytes) -> _Fields:
    """Those that a report was made of."""
    report = msgspec.json.decode(body, type=_Fields)
    output = msgspec.json.decode(report["output"], type=_Fields)
    return output | {name: value for name, value in report.items() if name == "error"}


def _cut(fields: _Fields) -> _Fields:
    """Without what a report can do without."""
    kept = {name: value for name, value in fields.items() if name != "exception"}
    for name, limit in (("stdout", _OUTPUT_KEPT), ("error", _ERROR_KEPT)):
        text = msgspec.json.decode(kept[name]) if name in kept else None
        if isinstance(text, str) and len(text) > limit:
            # With the words between, no longer than that: what was cut is not cut again.
            half = (limit - _WORDS) // 2
            kept[name] = _raw(
                f"{text[:half]}\n[{len(text) - 2 * half} characters are left out here: the platform "
                f"takes no larger report]\n{text[-half:]}"
            )
    return kept


def _raw(value: Any) -> Raw:
    return Raw(msgspec.json.encode(value))
