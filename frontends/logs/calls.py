"""Log lines about calls: one for each failure, and the calls' output if that is enabled."""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from flashpool.pool import call_ids
from flashpool.pool.calls import Call, Outcome
from flashpool.pool.errors import BY_NAME, CallError
from flashpool.pool.exit_causes import TAIL_HEADING

from . import line_format

#: Operators filter lines by this name.
_log = logging.getLogger("flashpool.frontends.logs")
_output_log = logging.getLogger("flashpool.output")

#: Most characters of a reason: the output of a failed build can have pages.
_WHY: Final = 400
#: Most characters of a line of a call's output in the log.
_LINE: Final = 4096
#: A call may write the output of so many seconds at once before lines are left out.
_BURST_S: Final = 4.0


def tell_end(call: Call, call_id: int, outcome: Outcome) -> None:
    """Log the cause of a failed call, and where to look."""
    if outcome.error_type is None or was_refused(outcome):
        return
    cancelled = outcome.from_user or outcome.error_type == "Cancelled"
    level = logging.INFO if cancelled else logging.WARNING
    if not _log.isEnabledFor(level):
        return
    pid = outcome.receipt.pid
    who = f"{call.label}, pid {pid}" if pid else call.label
    extra = extra_of(call, call_ids.name_of(call_id))
    _log.log(level, "Call of %s: %s: %s", who, outcome.error_type, _why(outcome), extra=extra)


def extra_of(call: Call, name: str) -> dict[str, Any]:
    """Return ``extra`` of a log record about a call with this name."""
    trace = "" if call.trace is None else call.trace.trace_id
    return line_format.of_call(name, call.request_id, trace)


def _why(outcome: Outcome) -> str:
    if outcome.from_user:
        # The message may contain secrets of the caller: only the caller gets it.
        return "raised by the call's code; its answer has the traceback"
    text = outcome.error or ""
    return " ".join(text.partition(TAIL_HEADING)[0].split())[:_WHY]


def was_refused(outcome: Outcome) -> bool:
    """Return whether the request was refused before it became a call."""
    kind = BY_NAME.get(outcome.error_type or "")
    return not outcome.receipt.environment and kind is not None and not issubclass(kind, CallError)


class OutputLines:
    """Writes the output of one call as log lines, up to a rate."""

    def __init__(self, call: Call, name: str, bytes_a_second: int) -> None:
        self._label = call.label
        self._extra = extra_of(call, name)
        self._rate = bytes_a_second
        self._left = self._most = _BURST_S * bytes_a_second
        self._at = time.monotonic()
        self._rest = b""
        self._cut = 0

    def feed(self, chunk: bytes) -> None:
        """Log the lines that are complete now."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > _LINE:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._show(line)

    def close(self) -> None:
        """Log a last line without a newline, and how many bytes were left out."""
        if self._rest:
            self._show(self._rest)
        self._tell_cut()

    def _show(self, line: bytes) -> None:
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now
        if len(line) > self._left:
            self._cut += len(line)
            return
        self._tell_cut()
        self._left -= len(line)
        text = line[:_LINE].decode("utf-8", "backslashreplace").rstrip("\r")
        _output_log.info("%s| %s", self._label, text, extra=self._extra)

    def _tell_cut(self) -> None:
        cut, self._cut = self._cut, 0
        if cut:
            _output_log.info(
                "%s| [... %d bytes of its output are not shown here: FLASHPOOL_LOG_OUTPUT_KB_S ...]",
                self._label,
                cut,
                extra=self._extra,
            )
