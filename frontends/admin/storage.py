"""Free space on the disks of environments.

A volume that hangs blocks every reader indefinitely. Therefore one thread queries the disks, and no
request waits for that thread. The latest answer is shown with its age: a growing age means that a
disk hangs.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

#: Seconds for which an answer is reused.
_FRESH_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageStats:
    """One disk: ``volume`` or ``local``."""

    place: str
    path: str
    size_bytes: int
    free_bytes: int
    #: Seconds since the disk answered.
    age_s: float
    problem: str | None


class Storage:
    """Queries the disks when figures are requested and the latest answer is old."""

    def __init__(self, places: Mapping[str, Path]) -> None:
        self._places = dict(places)
        self._found: list[StorageStats] = []
        self._found_at = 0.0
        self._asking: threading.Thread | None = None

    def latest(self) -> list[StorageStats]:
        """Return the latest answer; if it is old, query the disks again without waiting."""
        age = time.monotonic() - self._found_at
        if not self._found or age > _FRESH_S:
            self._ask()
        return [replace(one, age_s=round(age, 3)) for one in self._found]

    def _ask(self) -> None:
        if self._asking is None or not self._asking.is_alive():
            self._asking = threading.Thread(target=self._look, name="storage", daemon=True)
            self._asking.start()

    def _look(self) -> None:
        self._found = [_room(place, path) for place, path in self._places.items()]
        self._found_at = time.monotonic()


def _room(place: str, path: Path) -> StorageStats:
    try:
        found = os.statvfs(_existing(path))
    except OSError as error:
        return StorageStats(
            place=place, path=str(path), size_bytes=0, free_bytes=0, age_s=0.0, problem=str(error)
        )
    return StorageStats(
        place=place,
        path=str(path),
        size_bytes=found.f_blocks * found.f_frsize,
        free_bytes=found.f_bavail * found.f_frsize,
        age_s=0.0,
        problem=None,
    )


def _existing(path: Path) -> Path:
    """Return the nearest existing directory above: the first call with packages creates a store."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
