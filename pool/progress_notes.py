"""Keeps the progress lines of a build for callers who read them afterwards."""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = ["ProgressNotes"]

#: Most lines kept of the build of one environment, and most characters kept of a line.
LINES: Final = 200
LINE_LIMIT: Final = 500


class ProgressNotes:
    """The last progress lines of a build."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=LINES)

    def add(self, line: str) -> str:
        """Keep a line; return it as it is kept."""
        line = line[:LINE_LIMIT]
        self._lines.append(line)
        return line

    def text(self) -> bytes:
        """Return the lines as text, to be placed before a call's output."""
        return "".join(f"{line}\n" for line in self._lines).encode("utf-8", "backslashreplace")
