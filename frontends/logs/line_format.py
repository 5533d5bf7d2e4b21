"""The form of log lines: for people, for machines, and like RunPod's own lines.

    text    2026-11-30 10:00:00,000 WARNING flashpool.frontends.logs: Call of f: ... [call 3f9a-17]
    json    {"time": .., "level": .., "logger": .., "message": .., "pod": .., "call": .., ..}
    runpod  {"requestId": "job-7", "message": .., "level": "WARN"}

A record carries facts about its call in ``extra``, which `of_call` creates.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from functools import lru_cache
from typing import Any, Final, TextIO

TEXT: Final = "text"
JSON: Final = "json"
RUNPOD: Final = "runpod"
AUTO: Final = "auto"

_FORMAT: Final = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_COLOURS: Final = {
    logging.DEBUG: "\x1b[2m",
    logging.WARNING: "\x1b[33m",
    logging.ERROR: "\x1b[31m",
    logging.CRITICAL: "\x1b[1;31m",
}
_PLAIN: Final = "\x1b[0m"
#: Names of levels in the platform's own logger.
_RUNPOD_LEVELS: Final = {"WARNING": "WARN", "CRITICAL": "ERROR"}


def of_call(name: str, request_id: str = "", trace: str = "") -> dict[str, Any]:
    """Return ``extra`` of a record about a call."""
    return {"call": name, "request_id": request_id, "trace": trace}


@lru_cache(maxsize=1)
def pod() -> str:
    """Return the name that distinguishes this machine in a shared log."""
    return os.environ.get("RUNPOD_POD_ID") or socket.gethostname()


def formatter(form: str, stream: TextIO, *, queue: bool = False) -> logging.Formatter:
    """Return the formatter of a form; ``queue``: the server takes jobs of the platform."""
    if form == AUTO:
        form = RUNPOD if queue and os.environ.get("RUNPOD_ENDPOINT_ID") else TEXT
    if form == JSON:
        return JsonFormatter()
    if form == RUNPOD:
        return RunpodFormatter()
    return TextFormatter(colours=stream.isatty() and not os.environ.get("NO_COLOR"))


class TextFormatter(logging.Formatter):
    """Lines for people; one line per event, apart from tracebacks."""

    def __init__(self, *, colours: bool) -> None:
        super().__init__(_FORMAT)
        self._colours = colours

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's
        """Return the line, followed by the facts about the call."""
        line = super().formatMessage(record).replace("\n", "\n    ")
        if where := _where(record):
            line = f"{line} [{where}]"
        colour = _COLOURS.get(record.levelno, "") if self._colours else ""
        return f"{colour}{line}{_PLAIN}" if colour else line


def _where(record: logging.LogRecord) -> str:
    facts = [
        f"{name} {value}"
        for name, value in (
            ("call", getattr(record, "call", "")),
            ("request", getattr(record, "request_id", "")),
            ("trace", getattr(record, "trace", "")),
            ("pod", os.environ.get("RUNPOD_POD_ID", "")),
        )
        if value
    ]
    return ", ".join(facts)


class JsonFormatter(logging.Formatter):
    """Lines for machines: one JSON object per line, always with the same fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, in ASCII: some readers treat characters such as U+2028 as line ends."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "pod": pod(),
            "call": getattr(record, "call", None) or None,
            "request_id": getattr(record, "request_id", None) or None,
            "trace": getattr(record, "trace", None) or None,
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class RunpodFormatter(logging.Formatter):
    """Lines in the form of the platform's SDK, so that one reader parses both."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        message = record.getMessage()
        if record.exc_info:
            message = f"{message}\n{self.formatException(record.exc_info)}"
        job = getattr(record, "request_id", "") or getattr(record, "call", "")
        level = _RUNPOD_LEVELS.get(record.levelname, record.levelname)
        return json.dumps({"requestId": job or None, "message": message, "level": level})
