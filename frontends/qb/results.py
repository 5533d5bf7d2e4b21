"""Turns the outcome of a job into a report that the platform accepts.

    outcome --service--> answer --> {"output": {fields but error}, "error": ...}
       |                    |
       |                    `-- too large: its output is cut; a failure goes without its exception
       `-- a result that alone is too large: spilled to the volume, else ResultTooLarge

The platform recognises a failure by `error` beside the output, which is what the SDK extracts from
a handler's return value. Reports are joined from spans of the answer, which is not parsed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final

import msgspec
from msgspec import Raw

from flashpool.frontends.disk import Disk
from flashpool.frontends.responses import outcome_of
from flashpool.frontends.service import Service
from flashpool.pool.calls import Outcome
from flashpool.pool.errors import FlashpoolError, ResultTooLarge, WorkerCrashed

from .outbox import JobReport
from .spill import Spill

_log = logging.getLogger(__name__)

#: Characters that are kept of an output, and of an error, if a report is too large.
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
        self._disk = Disk()
        #: Further fields of every report: the SDK's debugger.
        self.more: Callable[[], dict[str, Any]] | None = None

    async def report(
        self, job_id: str, outcome: Outcome, *, streamed: bool, spill_s: float = 60.0
    ) -> JobReport:
        """Return the report of a finished job; writing to the volume may take ``spill_s``."""
        more: _Fields = {}
        if outcome.ok and len(outcome.body) > self._limit:
            # Check before joining: each copy of a result may be a gigabyte.
            outcome, more = await self._elsewhere(job_id, outcome, len(outcome.body), spill_s)
        fields = self._all(outcome, more)
        body = _body(fields)
        if len(body) > self._limit:
            size, body = len(body), _body(_cut(fields))
            if outcome.ok and len(body) > self._limit:
                outcome, more = await self._elsewhere(job_id, outcome, size, spill_s)
                body = _body(_cut(self._all(outcome, more)))
        return JobReport(job_id=job_id, body=body, streamed=streamed, failed=not outcome.ok)

    def _all(self, outcome: Outcome, more: _Fields) -> _Fields:
        debugger = self.more() if self.more is not None else {}
        return self.fields(outcome) | {name: _raw(value) for name, value in debugger.items()} | more

    def fields(self, outcome: Outcome) -> _Fields:
        """Return the fields of the answer, as spans."""
        if outcome.error_type == "ResultTooLarge" and not outcome.from_user and not self._spill:
            outcome = replace(outcome, error=f"{outcome.error}{_SPILL_HINT}")
        return msgspec.json.decode(self._service.answer(outcome).body, type=_Fields)

    def refused(self, report: JobReport) -> JobReport:
        """Return a shorter report in place of one that the platform refuses as too large."""
        cut = _body(_cut(_fields(report.body)))
        if len(cut) < len(report.body):
            return replace(report, body=cut)
        error = ResultTooLarge(
            f"The platform refuses the report of {len(report.body)} bytes as too large. Return "
            f"less, or lower FLASHPOOL_JOB_RESULT_LIMIT_MB below its limit.{_SPILL_HINT}",
            size=len(report.body),
        )
        return replace(report, body=_body(self.fields(of_error(error))))

    async def _elsewhere(
        self, job_id: str, outcome: Outcome, size: int, limit_s: float
    ) -> tuple[Outcome, _Fields]:
        """Return the outcome without its result, which is written to the volume, or else lost."""
        problem = ""
        if self._spill is not None:
            writing = partial(self._spill.spilled, job_id, outcome)
            try:
                outcome, reference = await self._disk.run(limit_s, writing)
            except OSError as error:
                _log.error("Job %s: its result cannot be written: %s", job_id, error)
                problem = f" It cannot be written to the volume: {error}."
            except ValueError:
                # Only user code that found the worker's channel can have written this.
                return _instead(
                    outcome, WorkerCrashed("The worker's result message is malformed.")
                ), {}
            else:
                return outcome, {"spilled": _raw(reference)}
        too_large = ResultTooLarge(
            f"The report of the job has {size} bytes, and the platform takes {self._limit} "
            f"(FLASHPOOL_JOB_RESULT_LIMIT_MB).{problem} Return less, or write it to the volume "
            "or an object store and return where it is.",
            size=size,
            limit=self._limit,
        )
        return _instead(outcome, too_large), {}


def of_error(error: FlashpoolError) -> Outcome:
    """Return the outcome of a job that did not become a call; clients show only `error`."""
    outcome = outcome_of(error)
    return replace(outcome, error=f"{outcome.error_type}: {error.message}")


def _instead(outcome: Outcome, error: FlashpoolError) -> Outcome:
    """Return a failure in place of a result."""
    failed = of_error(error)
    return replace(
        failed,
        receipt=outcome.receipt,
        output=outcome.output,
        instance=outcome.instance,
        warnings=outcome.warnings,
    )


def _body(fields: _Fields) -> bytes:
    output = {name: value for name, value in fields.items() if name != "error"}
    error = fields.get("error")
    failed = error is not None and bytes(error) != b"null"
    return msgspec.json.encode({"output": output, "error": error} if failed else {"output": output})


def _fields(body: bytes) -> _Fields:
    """Return the fields from which a report was made."""
    report = msgspec.json.decode(body, type=_Fields)
    output = msgspec.json.decode(report["output"], type=_Fields)
    return output | {name: value for name, value in report.items() if name == "error"}


def _cut(fields: _Fields) -> _Fields:
    """Return the report without its optional parts."""
    kept = {name: value for name, value in fields.items() if name != "exception"}
    for name, limit in (("stdout", _OUTPUT_KEPT), ("error", _ERROR_KEPT)):
        text = msgspec.json.decode(kept[name]) if name in kept else None
        if isinstance(text, str) and len(text) > limit:
            # The limit includes the words between the halves, so a cut text is not cut again.
            half = (limit - _WORDS) // 2
            kept[name] = _raw(
                f"{text[:half]}\n[{len(text) - 2 * half} characters are left out here: the platform accepts no larger report]\n{text[-half:]}"
            )
    return kept


def _raw(value: Any) -> Raw:
    return Raw(msgspec.json.encode(value))
