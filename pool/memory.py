"""What a call's process tree uses, and whether the kernel took something for memory.

A limit is enforced by looking: RLIMIT_AS would break CUDA's huge reservations.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ._child import processes
from .causes import OomKill

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
#: Where the kernel counts its kills: control groups, version 2, then 1.
_COUNTERS: Final = (
    ("memory.events", "/sys/fs/cgroup/memory.events"),
    ("memory.oom_control", "/sys/fs/cgroup/memory/memory.oom_control"),
    ("vmstat", "/proc/vmstat"),
)


def used(pid: int) -> int:
    """Bytes the process and all below it use, at most.

    Resident pages are quick to read, but count what processes share once for each. Only
    a tree that seems to use too much is worth the exact measure (`exact`).
    """
    return sum(map(_resident, (pid, *processes.descendants(pid))))


def exact(pid: int) -> int:
    """Bytes of proportional set size of the tree: a shared page counts once in all."""
    return sum(map(_proportional, (pid, *processes.descendants(pid))))


def _resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            resident = file.read().split()[1]
    except (OSError, IndexError):
        return 0
    return int(resident) * _PAGE


def _proportional(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            for line in file:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return _resident(pid)
    return 0


class OomWatch:
    """Tells whether the kernel's counter of out-of-memory kills rose since last asked."""

    def __init__(self) -> None:
        self._source, self._path = self._find()
        self._last = self._read()

    def rose(self) -> OomKill | None:
        """Evidence of a kill since the last call of this, or None."""
        now = self._read()
        more, self._last = now - self._last, now
        return OomKill(source=self._source, kills=more) if more > 0 else None

    def _find(self) -> tuple[str, Path | None]:
        for source, name in _COUNTERS:
            path = Path(name)
            if _kills(path) is not None:
                return source, path
        return "", None

    def _read(self) -> int:
        return (_kills(self._path) or 0) if self._path is not None else 0


def _kills(path: Path) -> int | None:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(" ")
        if name == "oom_kill":
            return int(value)
    return None
