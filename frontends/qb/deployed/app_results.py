"""Turns the outcome of a deployed app's job into a report: the output is the handler's result.

{"a": 1}                     {"output": {"a": 1}}
{"error": "no", "a": 1}      {"output": {"a": 1}, "error": "no"}: FAILED, as with the SDK's loop
{"refresh_worker": true}     {"output": {}, "stopPod": true}
another failure              {"output": {"success": false, "error_type": ...}, "error": ...}
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import msgspec
from msgspec import Raw

from flashpool.frontends.qb.outbox import JobReport
from flashpool.frontends.qb.results import Results, of_error
from flashpool.pool.calls import Outcome
from flashpool.pool.errors import ResultTooLarge

#: Characters that are kept of each text of a failure that is too large.
_KEPT: Final = 64 * 1024
_FALSY: Final = (b"null", b"false", b"0", b'""', b"[]", b"{}")
#: Fields that the client's generated handlers return for an exception, beside `error`.
_OF_RAISED: Final = ({"success", "traceback"}, {"traceback"})

_Fields = dict[str, Raw]


class AppResults(Results):
    """Makes the reports of a deployed app."""

    async def report(
        self, job_id: str, outcome: Outcome, *, streamed: bool, spill_s: float = 60.0
    ) -> JobReport:
        """Return the report of a finished job; writing to the volume may take ``spill_s``."""
        report = self._whole(outcome)
        body = _encoded(report)
        if len(body) > self._limit and "error" not in report:
            outcome, _ = await self._elsewhere(job_id, outcome, len(body), spill_s)
            report = self._whole(outcome)
            body = _encoded(report)
        if len(body) > self._limit:
            body = _encoded(_cut(report))
        return JobReport(job_id=job_id, body=body, streamed=streamed, failed="error" in report)

    def refused(self, report: JobReport) -> JobReport:
        """Return a shorter report for one that the platform refuses as too large."""
        fields = msgspec.json.decode(report.body, type=_Fields)
        if "error" in fields:
            cut = _encoded(_cut(fields))
            if len(cut) < len(report.body):
                return replace(report, body=cut)
        error = ResultTooLarge(
            f"The platform refuses the report of {len(report.body)} bytes as too large. Return "
            "less, or lower FLASHPOOL_JOB_RESULT_LIMIT_MB below its limit",
            size=len(report.body),
        )
        return replace(report, body=_encoded(_failure(of_error(error))))

    def _whole(self, outcome: Outcome) -> _Fields:
        report = _success(outcome.body) if outcome.ok else _failure(outcome)
        if self.more is not None and bytes(report["output"])[:1] == b"{":
            output = msgspec.json.decode(report["output"], type=_Fields)
            added = {name: _raw(value) for name, value in self.more().items()}
            report["output"] = _raw(output | added)
        return report


def _success(body: bytes) -> _Fields:
    if body[:1] != b"{":
        return {"output": Raw(body)}
    fields = msgspec.json.decode(body, type=_Fields)
    error, refresh = fields.pop("error", None), fields.pop("refresh_worker", None)
    report = {"output": _raw(fields)}
    if error is not None and bytes(error) == b'""' and set(fields) in _OF_RAISED:
        # The exception had no message; without an error the job would count as done.
        error = _raw(_last_line(fields["traceback"]))
    if error is not None and bytes(error) not in _FALSY:
        report["error"] = error
    if refresh is not None and bytes(refresh) not in _FALSY:
        report["stopPod"] = _raw(True)
    return report


def _last_line(traceback: Raw) -> str:
    """Return the last line of a traceback, which names the exception."""
    text: Any = msgspec.json.decode(traceback)
    lines = text.strip().splitlines() if isinstance(text, str) else []
    return lines[-1] if lines else "the function raised an exception"


def _failure(outcome: Outcome) -> _Fields:
    output: dict[str, Any] = {"success": False, "error_type": outcome.error_type}
    if outcome.details:
        output["details"] = outcome.details
    return {"output": _raw(output), "error": _raw(outcome.error or outcome.error_type)}


def _cut(report: _Fields) -> _Fields:
    """Return a failure without its optional parts."""
    kept = dict(report)
    output: Any = msgspec.json.decode(report["output"])
    if isinstance(output, dict):
        traceback = output.get("traceback")
        output = {name: output[name] for name in ("success", "error_type") if name in output}
        if isinstance(traceback, str):
            output["traceback"] = _ends(traceback)
        kept["output"] = _raw(output)
    else:
        kept["output"] = _raw(None)
    error: Any = msgspec.json.decode(report["error"])
    text = error if isinstance(error, str) else bytes(report["error"]).decode()
    kept["error"] = _raw(_ends(text))
    return kept


def _ends(text: str) -> str:
    if len(text) <= _KEPT:
        return text
    half = _KEPT // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n[{left_out} characters are left out here]\n{text[-half:]}"


def _encoded(report: _Fields) -> bytes:
    return msgspec.json.encode(report)


def _raw(value: Any) -> Raw:
    return Raw(msgspec.json.encode(value))
