"""Writes the server's output in threads, so that a reader that does not read blocks nothing else.

    logging, print, click --> sys.stderr --> bounded queue --> thread --> descriptor 2
                          --> sys.stdout --> bounded queue --> thread --> descriptor 1
                                               '-- full: lines are dropped and counted

A pipe holds 64 KiB. A process that writes to a full pipe waits, and a server that waits answers no
request. So lines are dropped instead. At exit, the threads get a moment to finish.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Final, TextIO

#: Bytes that may wait for a reader.
LIMIT: Final = 4 * 1024 * 1024
#: Seconds that the exit waits for unwritten lines.
EXIT_S: Final = 1.0
#: Seconds without a line after which the thread ends.
_IDLE_S: Final = 1.0
_LOST: Final = "flashpool: lines of the log that were lost, because no process read it: {}\n"


class LineWriter:
    """Writes data to one descriptor, in order, without blocking its callers."""

    def __init__(self, fd: int, limit: int = LIMIT) -> None:
        self._fd = fd
        self._limit = limit
        self._begin()
        # A fork has no writer thread, and starts one when it prints.
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._lost = 0
        #: Until when `put` waits for its line to be written; None: `put` does not wait.
        self._waits_until: float | None = None
        self._thread: threading.Thread | None = None

    def put(self, data: bytes) -> None:
        """Queue a line, unless the queue is full."""
        with self._changed:
            if self._size + len(data) > self._limit:
                self._lost += data.count(b"\n")
                return
            self._waiting.append(data)
            self._size += len(data)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, args=(self._changed,), name="log writer", daemon=True
                )
                self._start(self._thread)
            self._changed.notify_all()
            if self._waits_until is not None:
                self._wait(self._waits_until)

    def _start(self, thread: threading.Thread) -> None:
        try:
            thread.start()
        except RuntimeError:
            # No thread can be started now: the next line tries again.
            self._thread = None

    def _run(self, changed: threading.Condition) -> None:
        while True:
            with changed:
                if not changed.wait_for(lambda: self._waiting, _IDLE_S):
                    self._thread = None
                    return
                data = self._waiting[0]
            self._write(data)
            with changed:
                # Remove the line only now: `close` waits until the last line is written.
                self._waiting.popleft()
                self._size -= len(data)
                lost, self._lost = self._lost, 0
                changed.notify_all()
            if lost:
                self._write(_LOST.format(lost).encode())

    def _write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # the reader is gone
            while data:
                data = data[os.write(self._fd, data) :]

    def close(self, end: float) -> None:
        """Wait until all data is written, at most until ``end`` on the monotonic clock."""
        with self._changed:
            self._wait(end)

    def _wait(self, end: float) -> None:
        self._changed.wait_for(lambda: not self._waiting, max(0.0, end - time.monotonic()))

    def wait_from_now_on(self, end: float) -> None:
        """Make each `put` wait like `close`: the process is about to exit, perhaps by a signal."""
        with self._changed:
            self._waits_until = end


class WriterStream(io.TextIOBase):
    """Replaces `sys.stdout` and `sys.stderr` in a server."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, writer: LineWriter, fd: int) -> None:
        super().__init__()
        self._writer = writer
        self._fd = fd

    def write(self, text: str) -> int:
        """Queue a text."""
        self._writer.put(text.encode("utf-8", "backslashreplace"))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:  # type: ignore[override]
        """Queue several texts."""
        for line in lines:
            self.write(line)

    def wait_from_now_on(self, end: float) -> None:
        """See `LineWriter.wait_from_now_on`."""
        self._writer.wait_from_now_on(end)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)


def print_from_threads() -> None:
    """From now on, write this process's output in threads."""
    writers = []
    for name in ("stdout", "stderr"):
        before = getattr(sys, name)
        if isinstance(before, WriterStream):
            return
        try:
            fd = before.fileno()
            before.flush()
        except (AttributeError, OSError, ValueError):
            continue  # no descriptor: another object replaced the stream
        writer = LineWriter(fd)
        stream = WriterStream(writer, fd)
        _redirect_handlers(before, stream)
        setattr(sys, name, stream)
        writers.append(writer)
    atexit.register(_close, writers)


def wait_for_readers() -> None:
    """From now on, wait for each line to be written: a signal ends the process without exit hooks.

    All waits together take at most `EXIT_S`.
    """
    end = time.monotonic() + EXIT_S
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, WriterStream):
            stream.wait_from_now_on(end)


def _redirect_handlers(before: TextIO, stream: WriterStream) -> None:
    """Make existing log handlers write to the new stream instead of the one before."""
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    for logger in loggers:
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler) and handler.stream is before:
                handler.setStream(stream)


def _close(writers: list[LineWriter]) -> None:
    end = time.monotonic() + EXIT_S
    for writer in writers:
        writer.close(end)
