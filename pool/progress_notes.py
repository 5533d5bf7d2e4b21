"""Keeps the progress lines of a build for callers who read them afterwards."""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = ["ProgressNotes"]

#: Lines kept of the making of one environment, and the characters kept of one.
LINES: Final = 200
LINE_LIMIT: Final = 500


class ProgressNotes:
    """The last progress lines."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=LINES)

    def add(self, line: str) -> str:
        """Keep one more line; the line as it is kept."""
        line = line[:LINE_LIMIT]
        self._lines.append(line)
        return line

    def text(self) -> bytes:
        """Return the lines as text, to be placed before a call's output."""
        return "".join(f"{line}\n" for line in self._lines).encode("utf-8", "backslashreplace")
