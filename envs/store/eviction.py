"""Makes room: which environments are evicted, and how.

    usage -> over a limit? -> least recently used first:
      retire here, announce, look for other pods' marks, set aside, look again, delete

An environment that any pod leases is not moved: the evictor announces its intent, sees the mark,
and tries the next environment (lease_files.py). uv's cache may share its files with the
environments, so a file counts once however many names it has.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from .apart import carried_out
from .counts import StoreCounts
from .growth import trim
from .layout import Store, is_directory, remove_tree
from .lease_files import LeaseTable, Marks
from .liveness import Liveness
from .manifest import read_facts
from .volume_files import in_folder, move

__all__ = [
    "DiskUse",
    "Evicted",
    "Evictor",
    "StoreLimits",
    "Stored",
    "Usage",
    "evict_archives",
    "sweep",
]

_log = logging.getLogger(__name__)
#: Age from which leftovers are deleted: the two steps of a write are milliseconds apart, so no
#: writer is active any more.
_LEFT_S: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """Limits of a store; 0 means no limit."""

    quota: int = 0
    min_free: int = 0
    max_age_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """An environment, as eviction sees it."""

    digest: str
    bytes: int
    last_used: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Bytes of a store: all of them, and those that only uv's cache uses."""

    total: int = 0
    cache_only: int = 0

    @property
    def needed(self) -> int:
        return self.total - self.cache_only


@dataclass(frozen=True, slots=True, kw_only=True)
class Evicted:
    """The results of one round of eviction."""

    digests: tuple[str, ...] = ()
    #: Environments that would have been evicted if they were not in use.
    wanted: tuple[str, ...] = ()
    cache_cleaned: bool = False


class DiskUse:
    """Counts bytes on disk, each file once however many names it has.

    Other processes may rename files meanwhile: what moves to a root that is added later is found
    there, and counts once even if it is found twice.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def add(self, root: Path) -> tuple[int, int]:
        """Add what is new below a root; return its bytes, and those of files with one name."""
        total = alone = 0
        # Links are not followed: they may lead to other users' files, or the whole machine.
        pending = [str(root)] if is_directory(root) else []
        while pending:
            try:
                entries = list(os.scandir(pending.pop()))
            except OSError:
                continue  # deleted meanwhile
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                # The time is part of the key, because inode numbers of deleted files are reused at
                # once.
                key = hash((status.st_dev, status.st_ino, status.st_mtime_ns))
                if key in self._seen:
                    continue
                self._seen.add(key)
                size = status.st_blocks * 512
                total += size
                alone += size if status.st_nlink == 1 else 0
        return total, alone


class Evictor:
    """Evicts from one store. Every method blocks and is safe to run concurrently."""

    def __init__(
        self,
        store: Store,
        holders: Liveness,
        marks: Marks,
        table: LeaseTable[Any],
        limits: StoreLimits,
        counts: StoreCounts | None = None,
    ) -> None:
        self._store = store
        self._holders = holders
        self._marks = marks
        self._table = table
        self.limits = limits
        self._counts = counts or StoreCounts()

    def stored(self) -> list[Stored]:
        """Return every environment, least recently used first."""
        rows = [
            Stored(
                digest=digest, bytes=self._bytes(digest), last_used=self._marks.last_used(digest)
            )
            for digest in self._store.digests()
        ]
        return sorted(rows, key=lambda item: (item.last_used, item.digest))

    def _bytes(self, digest: str) -> int:
        facts = read_facts(self._store.environment(digest))
        return facts.bytes if facts else 0

    def usage(self) -> Usage:
        """Return the bytes in the store; zero if no limit depends on them."""
        return Usage() if self.at_ease() else self.measure()

    def at_ease(self) -> bool:
        """Return whether no limit is set or near, so that bytes need not be counted."""
        return not self.limits.quota and self._free() >= self.limits.min_free * 2

    def measure(self) -> Usage:
        """Count everything under the root, each file once."""
        return _usage(self._store)

    def over(self, usage: Usage, reserve: int = 0, *, without_cache: bool = False) -> bool:
        """Return whether `reserve` more bytes exceed a limit, now or with a clean cache."""
        limits = self.limits
        total = usage.needed if without_cache else usage.total
        gain = usage.cache_only if without_cache else 0
        if limits.quota and total + reserve > limits.quota:
            return True
        return self._free() + gain < limits.min_free + (reserve if limits.min_free else 0)

    def is_over(self, reserve: int) -> bool:
        """Return whether `reserve` more bytes exceed a limit in the store's present state."""
        return self.over(self.usage(), reserve)

    def reserve(self) -> int:
        """Return the estimated bytes of the next environment: those of the largest one.

        The estimate includes its files in uv's cache, copies of them, and their bytecode.
        """
        largest = max((item.bytes for item in self.stored()), default=0)
        return min(3 * largest, self.limits.quota * 3 // 4)

    def evict(self, digest: str) -> bool:
        """Delete an environment unless it is in use; return whether it was deleted."""
        if not self._table.retire(digest):
            return False
        target = self._store.environment(digest)
        # Under this holder's name: from the trash, any process might delete it before it is put
        # back.
        aside = self._store.new_scratch(self._holders.me)
        moved = self._marks.may_evict(
            digest, lambda: _move(target, aside), lambda: _move(aside, target)
        )
        self._store.discard(aside)
        self._store.empty_trash()
        if moved:
            self._marks.forget(digest)
            self._counts.add("evicted")
            _log.info("evicted environment %s", digest)
        return moved

    def run(self, *, reserve: int = 0, everything: bool = False) -> Evicted:
        """Run one round: evict until the limits can hold, or evict everything unused.

        An environment's files remain in uv's cache. So the limits are compared with the store
        without files that only the cache uses; cleaning the cache is the caller's last step.
        """
        usage = self.usage()
        evicted: list[str] = []
        wanted: list[str] = []
        for victim in self.stored():
            needed = everything or self.over(usage, reserve, without_cache=True)
            if not needed and not self._aged(victim.digest):
                continue
            if self._evicted(victim.digest):
                evicted.append(victim.digest)
                usage = self.usage()
            else:
                wanted.append(victim.digest)
        return Evicted(digests=tuple(evicted), wanted=tuple(wanted))

    def evict_aged(self) -> list[str]:
        """Evict environments unused for too long, even if no limit is near."""
        if not self.limits.max_age_s:
            return []
        aged = [digest for digest in self._store.digests() if self._aged(digest)]
        return [digest for digest in aged if self._evicted(digest)]

    def _evicted(self, digest: str) -> bool:
        """Evict an environment; return False if it cannot be moved, so that others are tried."""
        try:
            return self.evict(digest)
        except OSError as error:
            _log.warning("environment %s is not evicted: %s", digest, error)
            return False

    def _aged(self, digest: str) -> bool:
        limit = self.limits.max_age_s
        return bool(limit) and self._marks.unused_s(digest) > limit

    def _free(self) -> int:
        return _free(self._store.root)


@carried_out
def _usage(store: Store) -> Usage:
    use = DiskUse()
    cache, cache_only = use.add(store.cache)
    rest = sum(use.add(part)[0] for part in store.parts())
    return Usage(total=cache + rest, cache_only=cache_only)


@carried_out
def _free(root: Path) -> int:
    return shutil.disk_usage(root).free


def _move(source: Path, target: Path) -> None:
    try:
        move(source, target)
    except OSError as error:
        # Another process deleted it; or, when moving back, another process has rebuilt it.
        if not (error.errno == errno.ENOENT or is_directory(target)):
            raise


def sweep(store: Store, holders: Liveness, *, trimmed: bool = False) -> list[str]:
    """Clean up after dead processes, and after unfinished writes; blocking.

    Return what could not be done, and raise nothing: an error on the volume stops neither the other
    steps nor a caller that needs the store. ``trimmed``: also trim folders that only grow, which
    checks each of their files.
    """
    marks = Marks(store, holders)
    steps: dict[str, Callable[[], object]] = {
        "trash": store.empty_trash,
        "holders": holders.bury,
        "scratch": partial(_sweep_scratch, store, holders),
        "claims": partial(_sweep_claims, store, holders),
        "leases": partial(_sweep_marks, store, marks),
        "leavings": partial(_sweep_leavings, store, holders),
    }
    if trimmed:
        steps["requests and preloads"] = partial(trim, store, holders)
    problems = []
    for what, step in steps.items():
        try:
            step()
        except OSError as error:
            problems.append(f"{what}: {error}")
        except Exception as error:  # noqa: BLE001 - a bug here must not stop the caller
            _log.exception("%s of %s cannot be cleaned up", what, store)
            problems.append(f"{what}: {type(error).__name__}: {error}")
    return problems


def _sweep_scratch(store: Store, holders: Liveness) -> None:
    for name in store.scratch_names():
        if holders.dead(name.partition(".")[0]):
            remove_tree(store.scratch_root / name)


def _sweep_claims(store: Store, holders: Liveness) -> None:
    for path, owner in store.claims():
        if holders.dead(owner):
            remove_tree(path)


def _sweep_marks(store: Store, marks: Marks) -> None:
    for digest in set(store.marked()) - set(store.digests()):
        if marks.unused_s(digest) > _LEFT_S and not marks.users(digest):
            marks.forget(digest)


def _sweep_leavings(store: Store, holders: Liveness) -> None:
    for path in store.leavings():
        if holders.age_of(path) > _LEFT_S:
            remove_tree(path)


def evict_archives(store: Store, quota: int) -> list[str]:
    """Delete the least recently used archives until the rest fits; readers keep them open."""
    rows = [
        (_modified(store.archive_manifest(d)), _size(store.archive(d)), d) for d in store.archived()
    ]
    total = sum(size for _, size, _ in rows)
    gone = []
    for _, size, digest in sorted(rows):
        if not quota or total <= quota:
            break
        # The manifest first, because an archive without a manifest does not exist.
        remove_tree(store.archive_manifest(digest))
        remove_tree(store.archive(digest))
        total -= size
        gone.append(digest)
    return gone


def _modified(path: Path) -> float:
    status = _status(path)
    return status.st_mtime if status else 0.0


def _size(path: Path) -> int:
    status = _status(path)
    # Allocated blocks, not the size: a sparse file may have any size.
    return status.st_blocks * 512 if status and stat.S_ISREG(status.st_mode) else 0


def _status(path: Path) -> os.stat_result | None:
    folder, name = in_folder(path)
    return folder.status(name)
