"""A job's output as lines of the container's log, while it is written.

    chunks of bytes --> whole lines --> {"requestId": job, "message": line, "level": "INFO"}

The log is the server's stdout, which no call can reach: what calls write arrives through the
supervisor. The platform, and the client that reads its log, find a job's lines by the id.
"""

from __future__ import annotations

import json
import sys
from typing import Final

#: Most bytes of a message; the platform's own logger cuts at as many characters.
LINE_LIMIT: Final = 4096


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except (OSError, ValueError):
        pass  # The log's reader is gone; the job's answer has its output.


class LiveLines:
    """The lines of one job. At most ``limit`` bytes are logged: all jobs share the log."""

    def __init__(self, job_id: str, limit: int) -> None:
        self._job_id = job_id
        self._left = limit
        self._rest = b""

    def feed(self, chunk: bytes) -> None:
        """Log the lines that are complete now."""
        *lines, self._rest = (self._rest + self._cut(chunk)).split(b"\n")
        while len(self._rest) >= LINE_LIMIT:
            lines.append(self._rest[:LINE_LIMIT])
            self._rest = self._rest[LINE_LIMIT:]
        self._show(lines)

    def close(self) -> None:
        """Log a last line without a newline."""
        rest, self._rest = self._rest, b""
        self._show([rest] if rest else [])

    def say(self, line: str) -> None:
        """Log a line of the server about the job."""
        _write(self._entry(line))

    def _cut(self, chunk: bytes) -> bytes:
        if len(chunk) <= self._left:
            self._left -= len(chunk)
            return chunk
        if not self._left:
            return b""
        kept, self._left = chunk[: self._left], 0
        return kept + b"\n[its further output is not shown here]\n"

    def _show(self, lines: list[bytes]) -> None:
        pieces = [piece for line in lines if line for piece in _pieces(line)]
        if pieces:
            texts = [piece.decode("utf-8", "replace").rstrip("\r") for piece in pieces]
            _write("".join(map(self._entry, texts)))

    def _entry(self, message: str) -> str:
        entry = {"requestId": self._job_id, "message": message, "level": "INFO"}
        # ASCII: some readers of a log treat characters such as U+2028 as line ends.
        return json.dumps(entry) + "\n"


def _pieces(line: bytes) -> list[bytes]:
    return [line[start : start + LINE_LIMIT] for start in range(0, len(line), LINE_LIMIT)]
