"""What is told while an environment is made, kept for those who read of it afterwards."""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = ["ProgressNotes"]

#: Lines kept of the making of one environment, and the characters kept of one.
LINES: Final = 200
LINE_LIMIT: Final = 500


class ProgressNotes:
    """The last lines that were told."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=LINES)

    def add(self, line: str) -> str:
        """Keep one more line; the line as it is kept."""
        line = line[:LINE_LIMIT]
        self._lines.append(line)
        return line

    def text(self) -> bytes:
        """As it stands before a call's output."""
        return "".join(f"{line}\n" for line in self._lines).encode("utf-8", "backslashreplace")
