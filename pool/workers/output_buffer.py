"""Keeps the output of a call within a bound: its first and last bytes, and how many are missing."""

from __future__ import annotations

import re
from collections import deque
from typing import Final

#: A frame of the worker's runtime in a stack that `faulthandler` wrote.
_OUR_FRAME: Final = re.compile(
    rb'^  File "[^"\n]*/pool/_child/(?:\w+/)*\w+\.py", line \d+ in [^\n]*\n', re.MULTILINE
)
#: Bytes kept beyond the limit, to make up for flashpool's own frames that are removed later.
_BETWEEN: Final = 16 * 1024


def without_our_frames(written: bytes) -> bytes:
    """Return the output without flashpool's frames in dumped stacks."""
    return _OUR_FRAME.sub(b"", written) if b"/pool/_child/" in written else written


class OutputBuffer:
    """Keeps the first and the last ``limit / 2`` bytes, and a little more between."""

    __slots__ = ("_cut", "_half", "_head", "_head_size", "_tail", "_tail_size")

    def __init__(self, limit: int) -> None:
        self._half = max(1, limit // 2)
        self._head: list[bytes] = []
        self._head_size = 0
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self._cut = 0

    def __bool__(self) -> bool:
        return bool(self._head)

    def append(self, chunk: bytes, *, stderr: bool = False) -> None:
        """Add output that was read next."""
        room = self._half - self._head_size
        if room > 0:
            self._head.append(chunk[:room])
            self._head_size += min(room, len(chunk))
            chunk = chunk[room:]
        if not chunk:
            return
        self._tail.append(chunk)
        self._tail_size += len(chunk)
        # Whole chunks only: cutting each chunk exactly would copy the tail over and over.
        while self._tail_size - len(self._tail[0]) >= self._half + _BETWEEN:
            gone = self._tail.popleft()
            self._tail_size -= len(gone)
            self._cut += len(gone)

    def value(self, *, ours: bool = True) -> bytes:
        """Return the kept output, with a line in the middle that says how much is missing.

        With ``ours=False``, flashpool's frames in dumped stacks are removed before the output is
        cut to the limit.
        """
        head, tail = b"".join(self._head), b"".join(self._tail)
        if not ours:
            head, tail = self._users(head, tail)
        surplus = max(0, len(tail) - self._half)
        cut = self._cut + surplus
        if not cut:
            return head + tail
        return head + b"\n[... %d bytes of output cut ...]\n" % cut + tail[surplus:]

    def _users(self, head: bytes, tail: bytes) -> tuple[bytes, bytes]:
        if self._cut:
            return without_our_frames(head), without_our_frames(tail)
        whole = without_our_frames(head + tail)
        return whole[: self._half], whole[self._half :]

    def streams(self) -> list[tuple[bytes, bool]]:
        """Return the kept output for a sink: the bytes, and whether they are stderr."""
        return [(self.value(), False)]

    def tail(self, size: int) -> str:
        """Return the last ``size`` bytes as text, for messages."""
        return self.value(ours=False)[-size:].decode(errors="replace")


class SplitBuffer(OutputBuffer):
    """Also keeps the output of two streams separately."""

    __slots__ = ("_errors", "_output")

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._output, self._errors = OutputBuffer(limit), OutputBuffer(limit)

    def append(self, chunk: bytes, *, stderr: bool = False) -> None:
        """Add output that was read next."""
        super().append(chunk)
        (self._errors if stderr else self._output).append(chunk)

    def streams(self) -> list[tuple[bytes, bool]]:
        """Return the output of each stream that has any."""
        kept = ((self._output, False), (self._errors, True))
        return [(buffer.value(), stderr) for buffer, stderr in kept if buffer]
