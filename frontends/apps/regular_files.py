"""Opens files by their name if they are regular files of a limited size, without blocking."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import IO

__all__ = ["open_regular", "read_regular"]


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file; raise OSError for others: a pipe blocks, a device may be endless."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    # Check before `open` does: for a directory, `open` raises and leaks the descriptor.
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return open(handle, "rb", buffering=0)


def read_regular(path: Path, most: int) -> bytes:
    """Return all bytes of a regular file; raise OSError if they exceed the limit."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"it has {size} bytes, and {most} are the most", str(path))
        parts, left = [], most
        while left and (part := file.read(left)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
