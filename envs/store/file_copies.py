"""Chooses how an environment gets files of uv's cache: as clones, copies, or hard links.

A hard link is a second name of the cache's own file. A process that writes to that file changes it
for every environment that is built later. So links are used only if calls cannot write to it: calls
of a user who is neither root nor the cache's owner.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path
from typing import Final, Literal

from .apart import carried_out

__all__ = ["LinkMode", "link_mode_for"]

LinkMode = Literal["clone", "copy", "hardlink"]

#: From linux/fs.h: share another file's blocks until either file is written to.
_FICLONE: Final = 0x40049409


@carried_out
def link_mode_for(cache: Path) -> LinkMode:
    """Return the cheapest mode in which no call can write to files of the cache; blocking.

    uv cannot be left to choose: where it cannot clone, it makes hard links.
    """
    if os.geteuid() not in (0, _owner(cache)):
        return "hardlink"
    return "clone" if _can_clone(cache) else "copy"


def _owner(cache: Path) -> int:
    """Return the owner of the cache; this process's user if there is no cache yet."""
    try:
        return cache.stat().st_uid
    except FileNotFoundError:
        return os.geteuid()


def _can_clone(cache: Path) -> bool:
    """Return whether the file system can clone; found by trying: mkfs options matter."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryFile(dir=cache) as source,
            tempfile.TemporaryFile(dir=cache) as target,
        ):
            source.write(b"flashpool")
            source.flush()
            fcntl.ioctl(target, _FICLONE, source.fileno())
    except OSError:
        return False
    return True
