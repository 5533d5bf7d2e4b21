"""Merges memory mappings, because a fork copies each, and a worker's exit removes each.

A library is mapped in four parts: read-only, executable, read-only, writable. The first three are
adjacent in one file; with equal permissions, the kernel merges them into one mapping. So this
module makes the read-only parts executable, too; no further part becomes writable.

The interpreter's own files are left alone: profilers that inspect a process from outside find the
interpreter by its executable part.
"""

from __future__ import annotations

import ctypes
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_mprotect = ctypes.CDLL(None).mprotect
_mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
#: PROT_READ and PROT_EXEC (sys/mman.h).
_READ_EXECUTE: Final = 1 | 4


class _Part:
    """One line of /proc/self/maps."""

    __slots__ = ("end", "file", "mode", "offset", "start")

    def __init__(self, line: str) -> None:
        ends, self.mode, offset, device, inode, *path = line.split(None, 5)
        self.start, self.end = (int(end, 16) for end in ends.split("-"))
        self.offset = int(offset, 16)
        self.file = (device, inode, path[0] if path else "")

    def goes_on_in(self, other: _Part) -> bool:
        """Return whether the other mapping continues this one, both in the file and in memory."""
        of_a_file = self.file == other.file and self.file[1] != "0"
        size = other.start - self.start
        return of_a_file and self.end == other.start and self.offset + size == other.offset


def merge_read_only() -> bool:
    """Merge the read-only and executable mappings of each loaded library.

    Returns whether any were merged. The kernel may refuse (SELinux, seccomp, or `PR_SET_MDWE`,
    which forbids new executable memory); the mappings then stay unchanged.
    """
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            parts = [_Part(line.rstrip("\n")) for line in maps]
    except OSError:
        return False
    merged = False
    for before, code, after in zip(parts, parts[1:], parts[2:]):  # noqa: B905 - windows of three
        if [before.mode, code.mode, after.mode] != ["r--p", "r-xp", "r--p"]:
            continue
        if before.goes_on_in(code) and code.goes_on_in(after) and not _is_pythons(code.file[2]):
            size = after.end - before.start
            merged |= _mprotect(before.start, size, _READ_EXECUTE) == 0
    return merged


def _is_pythons(path: str) -> bool:
    name = os.path.basename(path)
    return name.startswith(("libpython", "python")) or path == os.path.realpath(sys.executable)
