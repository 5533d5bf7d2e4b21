"""Leases of environments: counts in this process, and marks for all other processes.

    leases/<digest>/<holder>             "this process uses it"; one file, whatever its count
    leases/<digest>/evicting.<holder>    "this process wants to delete it"

A user and an evictor each write their own file first and then look for the other's (as in Dekker's
algorithm), so at least one of them sees the other. The evictor yields; the user waits until an
evictor that it saw has decided. The user does not wait forever, because the evictor may have been
stopped: so the evictor looks again after it has moved the environment aside, and puts it back if it
is in use by then. Marks of a dead holder do not count, and any process removes them.

A process keeps its mark for a few seconds after its last lease was released. While the mark exists,
no other process may delete the environment, so a memo hit need not access the disk.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from .layout import Store
from .liveness import Liveness
from .volume_files import MOST_NAMES, Folder

__all__ = ["LeaseTable", "Marks"]

_log = logging.getLogger(__name__)

_INTENT: Final = "evicting."
_USED: Final = "used"
#: Stands for more users than can be listed.
_UNKNOWN: Final = "..."
_LOOK_AGAIN_S: Final = 0.005
#: An evictor decides within milliseconds; a stopped evictor delays users no longer than this.
_INTENT_LIMIT_S: Final = 2.0

T = TypeVar("T")


class Marks:
    """The files of marks; every method blocks."""

    def __init__(self, store: Store, holders: Liveness) -> None:
        self._store = store
        self._holders = holders

    def put(self, digest: str) -> None:
        """Mark as used by this process, then wait for evictors that came first."""
        folder = self._folder(digest)
        for name in (self._holders.me, _USED):
            _touch(folder, name)
        limit = time.monotonic() + _INTENT_LIMIT_S
        while self._intents(folder) and time.monotonic() < limit:
            time.sleep(_LOOK_AGAIN_S)

    def used(self, digest: str) -> None:
        """Record a use, for the order of eviction."""
        _touch(self._folder(digest), _USED)

    def last_used(self, digest: str) -> float:
        """Return the time of the last use, by the file system's clock; 0 for never."""
        try:
            status = self._folder(digest).status(_USED)
        except OSError:
            return 0.0
        return 0.0 if status is None else status.st_mtime

    def unused_s(self, digest: str) -> float:
        """Return the seconds since the last use, by the file system's clock; 0 for never."""
        return self._holders.age_of(self._store.leases(digest) / _USED)

    def take_away(self, digest: str) -> None:
        """Remove this process's mark."""
        self._folder(digest).remove(self._holders.me)

    def users(self, digest: str) -> list[str]:
        """Return the living processes that use the environment, including this one."""
        folder = self._folder(digest)
        names = folder.names()
        marks = [name for name in names if name != _USED and not name.startswith(_INTENT)]
        living = [name for name in marks if not self._clean_if_dead(folder, name, name)]
        # The number of names listed is limited; a mark must not be missed among the others.
        return living or ([_UNKNOWN] if len(names) >= MOST_NAMES else [])

    def may_evict(
        self, digest: str, move: Callable[[], object], put_back: Callable[[], object]
    ) -> bool:
        """Announce the eviction, and run `move` if there are no users; then check again.

        Return whether the environment stays moved; otherwise `put_back` is run.
        """
        folder, intent = self._folder(digest), f"{_INTENT}{self._holders.me}"
        _touch(folder, intent)
        try:
            if self.users(digest):
                return False
            move()
            if not self.users(digest):
                return True
            put_back()
            return False
        finally:
            folder.remove(intent)

    def forget(self, digest: str) -> None:
        """Forget an evicted environment, except the mark of a user that came since."""
        folder = self._folder(digest)
        folder.remove(_USED)
        try:
            folder.drop()
        except OSError as error:
            _log.debug("%s stays: %s", folder, error)

    def _folder(self, digest: str) -> Folder:
        path = self._store.leases(digest)
        return Folder(self._store.root, path.parent.name, path.name)

    def _intents(self, folder: Folder) -> list[str]:
        names = [name for name in folder.names() if name.startswith(_INTENT)]
        return [n for n in names if not self._clean_if_dead(folder, n, n.removeprefix(_INTENT))]

    def _clean_if_dead(self, folder: Folder, name: str, holder: str) -> bool:
        if not self._holders.dead(holder):
            return False
        folder.remove(name)
        return True


def _touch(folder: Folder, name: str) -> None:
    """Touch a file; try again if the folder was deleted between the two steps."""
    for _ in range(10):
        try:
            folder.touch(name)
            return
        except FileNotFoundError:
            continue
    folder.touch(name)


@dataclass(slots=True)
class _Entry(Generic[T]):
    value: T
    count: int = 0
    idle_since: float = field(default_factory=time.monotonic)
    used: bool = True
    #: Whether the environment was lost; leases on it may exist all the same.
    lost: bool = False


class LeaseTable(Generic[T]):
    """This process's leases: their counts, and since when environments are idle.

    Thread-safe; the lock is held only for dictionary look-ups, never during access to a disk.
    States of a digest: absent -> held (count >= 1) <-> idle (count 0) -> releasing -> absent; held
    or idle -> lost, if another process deleted it regardless, -> held, once it exists again.
    """

    def __init__(self, marks: Marks, *, hold_s: float) -> None:
        self._marks = marks
        self._hold_s = hold_s
        self._lock = threading.Lock()
        self._released = threading.Condition(self._lock)
        self._entries: dict[str, _Entry[T]] = {}
        self._pinned: Counter[str] = Counter()
        #: Called, in the thread that notices, with environments that were lost.
        self.on_lost: Callable[[str], None] = lambda _digest: None
        #: Digests whose marks are being removed: a new lease waits, or it would lose its mark as
        #: well.
        self._releasing: Counter[str] = Counter()

    def __repr__(self) -> str:
        with self._lock:
            held = {digest[:8]: entry.count for digest, entry in self._entries.items()}
        return f"<LeaseTable {held}>"

    def take(self, digest: str) -> T | None:
        """Add a lease on an environment that this process holds, and return it; else None."""
        with self._lock:
            entry = self._entries.get(digest)
            if entry is None or entry.lost:
                return None
            entry.count += 1
            entry.used = True
            return entry.value

    @contextmanager
    def pinning(self, digest: str) -> Iterator[None]:
        """Keep a digest from being retired while it is marked and checked, without an entry."""
        with self._lock:
            self._released.wait_for(lambda: not self._releasing[digest])
            self._pinned[digest] += 1
        try:
            yield
        finally:
            with self._lock:
                self._pinned[digest] -= 1
                if not self._pinned[digest]:
                    del self._pinned[digest]

    def enter(self, digest: str, value: T) -> T:
        """Add the first lease on a marked environment; keep an entry that was faster."""
        with self._lock:
            entry = self._entries.setdefault(digest, _Entry(value))
            if entry.lost:
                entry.value, entry.lost = value, False
            entry.count += 1
            entry.used = True
            return entry.value

    def give_back(self, digest: str) -> None:
        """Release one lease; do nothing after the table was closed."""
        with self._lock:
            entry = self._entries.get(digest)
            if entry is None:
                return
            assert entry.count > 0, f"{digest} was released more often than leased"
            entry.count -= 1
            entry.idle_since = time.monotonic()

    def held(self) -> dict[str, int]:
        """Return every digest that this process holds, with its number of leases."""
        with self._lock:
            return {digest: entry.count for digest, entry in self._entries.items()}

    def retire(self, digest: str) -> bool:
        """Stop holding an idle digest; return False while it is leased here."""
        with self._lock:
            entry = self._entries.get(digest)
            if digest in self._pinned or (entry is not None and entry.count):
                return False
            self._entries.pop(digest, None)
            self._releasing[digest] += 1
        try:
            self._marks.take_away(digest)
        finally:
            with self._lock:
                self._releasing[digest] -= 1
                if not self._releasing[digest]:
                    del self._releasing[digest]
                self._released.notify_all()
        return True

    def sweep(self) -> None:
        """Record uses, and retire what has been idle for too long; blocking."""
        with self._lock:
            used = [digest for digest, entry in self._entries.items() if entry.used or entry.count]
            for entry in self._entries.values():
                entry.used = False
            limit = time.monotonic() - self._hold_s
            idle = [d for d, e in self._entries.items() if not e.count and e.idle_since < limit]
        for digest in used:
            self._marks.used(digest)
        for digest in idle:
            self._retire_if_idle(digest, limit)

    def _retire_if_idle(self, digest: str, limit: float) -> None:
        with self._lock:
            entry = self._entries.get(digest)
            fresh = entry is not None and (entry.count or entry.idle_since >= limit)
        if not fresh:
            self.retire(digest)

    def mark_again(self) -> None:
        """Write the marks again, after other processes considered this one dead."""
        for digest in self.held():
            with self.pinning(digest):
                if digest in self.held():
                    self._marks.put(digest)

    def forget_lost(self, is_there: Callable[[str], bool]) -> None:
        """Mark environments as lost that other processes deleted regardless; blocking.

        A pod that was suspended for too long is considered dead, and its environments may be
        deleted.
        """
        deleted = [digest for digest in self.held() if not is_there(digest)]
        with self._lock:
            lost = [digest for digest in deleted if digest in self._entries]
            news = [digest for digest in lost if not self._entries[digest].lost]
            for digest in lost:
                self._entries[digest].lost = True
        for digest in news:
            self.on_lost(digest)

    def clear(self) -> None:
        """Release everything, when the process stops using the store."""
        with self._lock:
            digests = list(self._entries)
            self._entries.clear()
        for digest in digests:
            self._marks.take_away(digest)
