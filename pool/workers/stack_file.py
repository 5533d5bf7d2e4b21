"""The memory file to which the workers of one zygote write their stacks, one at a time."""

from __future__ import annotations

import asyncio
import fcntl
import os
from typing import Final

#: Most bytes that are read: user code may write to the file, too.
_LIMIT: Final = 1024 * 1024


class StackFile:
    """Writers append to the file; ``turn`` is held while a worker is asked for its stacks."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        #: -1 where the system has no memory files (memfd_create), and after `close`.
        self.fd = -1
        try:
            self.fd = os.memfd_create("flashpool-stacks")
        except OSError:
            return
        fcntl.fcntl(self.fd, fcntl.F_SETFL, os.O_APPEND)

    def empty(self) -> None:
        """Delete the previous worker's stacks."""
        os.ftruncate(self.fd, 0)

    def size(self) -> int:
        """Return the number of bytes written so far; 0 after `close`."""
        return os.fstat(self.fd).st_size if self.fd >= 0 else 0

    def read(self) -> bytes:
        """Return the first mebibyte of the file; nothing after `close`."""
        return os.pread(self.fd, _LIMIT, 0) if self.fd >= 0 else b""

    def close(self) -> None:
        """Close the descriptor. The zygote and its workers keep their own."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
