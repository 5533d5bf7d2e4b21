"""Counts builds, failures and evictions of one store since it was opened, and its environments.

`add` may be called in any thread. `look` reads the directory, and the facts of new environments:
facts do not change. It blocks, and belongs to the heartbeat thread.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from .layout import Store
from .manifest import read_facts

__all__ = ["StoreCounts", "Tally"]

Event = Literal["built", "failed", "evicted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """The counts at one moment."""

    #: None before the first look.
    environments: int | None
    bytes: int | None
    builds: int
    failed_builds: int
    evictions: int


class StoreCounts:
    """Counts of one store."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: Counter[Event] = Counter()
        #: Bytes of each environment at the latest look.
        self._seen: dict[str, int] | None = None

    def add(self, event: Event) -> None:
        """Count a build, a failure or an eviction by this process."""
        with self._lock:
            self._events[event] += 1

    def look(self, store: Store) -> None:
        """Count the environments in the store; blocking."""
        known = self._seen or {}
        found = {}
        for digest in store.digests():
            size = known.get(digest)
            if size is None:
                facts = read_facts(store.environment(digest))
                size = None if facts is None else facts.bytes
            if size is not None:
                found[digest] = size
        self._seen = found

    @property
    def tally(self) -> Tally:
        """Return all counts; does not access the disk."""
        seen = self._seen
        return Tally(
            environments=None if seen is None else len(seen),
            bytes=None if seen is None else sum(seen.values()),
            builds=self._events["built"],
            failed_builds=self._events["failed"],
            evictions=self._events["evicted"],
        )
