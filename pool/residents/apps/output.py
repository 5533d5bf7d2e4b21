"""Writes the output of apps, line by line, to the server's log.

A line printed in the context of a request comes with the request's id. Other lines, such as those
of child processes, are read from the descriptor to which the whole worker writes, and have no id.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Final

from flashpool.pool.workers.output_buffer import without_our_frames

_log = logging.getLogger("flashpool.app")

#: Bytes of an unfinished line that are kept until its end comes.
_LINE: Final = 8192
#: Most lines of one read that are logged one by one; more lines become one record.
_SINGLY: Final = 100
#: Number of last lines kept, for the error message when the worker dies.
_LAST: Final = 20


class AppOutput:
    """The output of one worker."""

    def __init__(self, name: str, pid: int) -> None:
        self._name = name
        self._pid = pid
        self._rest = b""
        self._last: deque[str] = deque(maxlen=_LAST)

    def take(self, chunk: bytes) -> None:
        """Log the complete lines, and keep the unfinished line."""
        *lines, self._rest = (self._rest + without_our_frames(chunk)).split(b"\n")
        if len(self._rest) > _LINE:
            lines.append(self._rest)
            self._rest = b""
        self._tell(lines)

    def take_of(self, request_id: str, chunk: bytes) -> None:
        """Log lines that a request printed; the last line may be cut."""
        self._tell(without_our_frames(chunk).split(b"\n"), request_id)

    def close(self) -> None:
        """Log the unfinished line."""
        if self._rest:
            self._tell([self._rest])
            self._rest = b""

    def tail(self) -> str:
        """Return the last lines."""
        return "\n".join(self._last)

    def _tell(self, lines: list[bytes], request_id: str = "") -> None:
        texts = [line.decode("utf-8", "backslashreplace") for line in lines if line]
        self._last.extend(texts[-_LAST:])
        if len(texts) > _SINGLY:
            texts = ["\n".join(texts)]
        for text in texts:
            of_request = {"request_id": request_id}
            _log.info("%s (%d): %s", self._name, self._pid, text, extra=of_request)
