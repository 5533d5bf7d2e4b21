"""Decides whether an app and its successor both fit on this machine during a reload."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from flashpool.pool.apps import App
from flashpool.pool.stats import PoolStats

_MEMINFO: Final = Path("/proc/meminfo")
_CGROUP: Final = Path("/sys/fs/cgroup")
_MIB: Final = 1024 * 1024


def no_room_for(app: App, stats: PoolStats) -> str:
    """Return why a second app like this does not fit; empty if it fits."""
    gpus = stats.gpus
    if gpus.total:
        free = sum(device.state == "free" and not device.calls for device in gpus.devices)
        need = app.workers * (1 if app.gpus is None else app.gpus)
        if need > free:
            return f"the successor needs {need} GPUs, and {free} are free"
    if app.memory_mb is None:
        return ""
    need_mb, free_mb = app.workers * app.memory_mb, free_memory_mb()
    if free_mb is not None and need_mb > free_mb:
        return f"the successor may take {need_mb} MiB (FLASHPOOL_MEMORY_MB), and {free_mb} are free"
    return ""


def free_memory_mb() -> int | None:
    """Return the free MiB: of the machine, or of the container if that has less."""
    found = [_of_machine(), _of_container()]
    known = [one for one in found if one is not None]
    return min(known) if known else None


def _of_machine() -> int | None:
    for line in _MEMINFO.read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) // 1024
    return None


def _of_container() -> int | None:
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None  # cgroups of version 1, or none
    return None if not limit.isdigit() else max(0, int(limit) - used) // _MIB
