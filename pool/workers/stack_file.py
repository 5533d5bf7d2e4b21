"""The file in memory that the workers of one zygote write their stacks to, one worker at a time."""

from __future__ import annotations

import asyncio
import fcntl
import os
from typing import Final

#: Most bytes that are read: user code may write to the file, too.
_LIMIT: Final = 1024 * 1024


class StackFile:
    """Every writer appends to the file; ``turn`` is held while a worker is asked for its stacks."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        #: -1 where the system has no files in memory, and after `close`.
        self.fd = -1
        try:
            self.fd = os.memfd_create("flashpool-stacks")
        except OSError:
            return
        fcntl.fcntl(self.fd, fcntl.F_SETFL, os.O_APPEND)

    def empty(self) -> None:
        """Delete what the worker before wrote."""
        os.ftruncate(self.fd, 0)

    def size(self) -> int:
        """Bytes written so far; 0 after `close`."""
        return os.fstat(self.fd).st_size if self.fd >= 0 else 0

    def read(self) -> bytes:
        """The first mebibyte of the file; nothing after `close`."""
        return os.pread(self.fd, _LIMIT, 0) if self.fd >= 0 else b""

    def close(self) -> None:
        """Let go of the file. The zygote and its workers keep their own descriptors."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
