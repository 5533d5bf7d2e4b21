"""Shows the output of calls on this program's own standard streams.

    loop thread: show(chunk) -> delivery thread: the sys.stdout or sys.stderr of that moment

If both streams are one file, as on a terminal, workers use one pipe for both, so that lines keep
the order in which they were written, and all output goes to standard output. Otherwise each stream
keeps its own order, and there is no order between the two.
"""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper

from .engine import Engine

#: Most bytes of output that may wait to be shown: a slow terminal then loses output, not memory.
OUTPUT_BACKLOG = 16 * 1024 * 1024


def streams_differ() -> bool:
    """Return whether this program's stderr leads to another file than its stdout."""
    streams: tuple[object, object] = sys.stdout, sys.stderr
    try:
        here, there = (os.fstat(one.fileno()) for one in streams if isinstance(one, TextIOWrapper))
    except (OSError, ValueError):
        # A stream of another kind has its own destination: a notebook's stream has a descriptor,
        # but does not show what is written to the descriptor. Or a stream is closed.
        return streams[0] is not streams[1]
    return (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino)


class _Output:
    """Shows the output of calls, in the order of arrival."""

    def __init__(self) -> None:
        self._waiting = 0
        self._dropped = 0

    def add(self, engine: Engine, chunk: bytes, stderr: bool) -> None:
        """Have the delivery thread write the output."""
        if self._waiting + len(chunk) > OUTPUT_BACKLOG:
            self._dropped += len(chunk)
            return
        self._waiting += len(chunk)
        engine.deliver(self._write, chunk, stderr)

    def _write(self, chunk: bytes, stderr: bool) -> None:
        self._waiting -= len(chunk)
        text = chunk.decode(errors="replace")
        if self._dropped:
            text += (
                f"\n[flashpool: {self._dropped} bytes of output dropped, this side is too slow]\n"
            )
            self._dropped = 0
        try:
            stream = sys.stderr if stderr else sys.stdout
            stream.write(text)
            stream.flush()
        except (OSError, ValueError, AttributeError):
            # The stream is closed or None; the futures keep the calls' output.
            pass


_shown = _Output()


def show(engine: Engine, chunk: bytes, *, stderr: bool = False) -> None:
    """Show output of a call on this program's own stream, unless too much waits. Loop thread."""
    _shown.add(engine, chunk, stderr)


def show_line(engine: Engine, line: str) -> None:
    """Show a line of flashpool itself. Loop thread."""
    show(engine, f"{line}\n".encode("utf-8", "backslashreplace"))
