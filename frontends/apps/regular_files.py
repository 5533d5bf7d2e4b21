"""Files that are read because of their name: regular ones only, of a limited size, without a wait."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import IO

__all__ = ["open_regular", "read_regular"]


def open_regular(path: Path) -> IO[bytes]:
    """Open it; OSError for all else. A pipe would be waited for, a device read without end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    # Before Python's own look at it: for a directory, `open` raises and leaves the descriptor.
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return open(handle, "rb", buffering=0)


def read_regular(path: Path, most: int) -> bytes:
    """All of its bytes; OSError when there are more than so many."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"it has {size} bytes, and {most} are the most", str(path))
        parts, left = [], most
        while left and (part := file.read(left)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
