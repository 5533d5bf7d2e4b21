"""Make room: which environments go, and how.

    plan (pure)   least recently used first, until bytes, age and free space are met
    Evictor       retire here, announce, look for other pods' marks, rename to trash, delete

A leased environment, of any pod, is never a victim that moves: the plan may name
it, and the announcement (leases.py) stops it. uv's cache shares its files with
the environments, so a file counts once however many names it has; what only the
cache still needs goes before environments do.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .holders import Holders
from .leases import LeaseTable, Marks
from .manifest import read_facts
from .store import Store, remove_tree

__all__ = [
    "Evicted",
    "Evictor",
    "Limits",
    "Stored",
    "choose_victims",
    "evict_archives",
    "unique_bytes",
]

_log = logging.getLogger(__name__)
_MB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a store must stay under; 0 means no limit."""

    quota: int = 0
    min_free: int = 0
    max_age_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One environment as eviction sees it."""

    digest: str
    bytes: int
    last_used: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evicted:
    """What one round did."""

    digests: tuple[str, ...] = ()
    #: Would have gone, were they not in use.
    wanted: tuple[str, ...] = ()
    #: Bytes of the whole store; 0 where no quota asks for counting.
    bytes_before: int = 0
    bytes_after: int = 0


def choose_victims(
    stored: Iterable[Stored], *, total: int, free: int, now: float, limits: Limits
) -> list[Stored]:
    """Pick victims, least recently used first; decides only."""
    over = max(
        total - limits.quota if limits.quota else 0,
        limits.min_free - free if limits.min_free else 0,
    )
    victims = []
    for item in sorted(stored, key=lambda item: (item.last_used, item.digest)):
        aged = bool(limits.max_age_s) and now - item.last_used > limits.max_age_s
        if over > 0 or aged:
            victims.append(item)
            over -= item.bytes
    return victims


def unique_bytes(roots: Sequence[Path]) -> tuple[int, int]:
    """Bytes on disk under some roots, each file once; and those whose only name is there."""
    seen: set[tuple[int, int]] = set()
    total = alone = 0
    pending = [str(root) for root in roots]
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except OSError:
            continue  # deleted under our feet
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
            size = status.st_blocks * 512
            alone += size if status.st_nlink == 1 else 0
            if status.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
            total += size
    return total, alone


class Evictor:
    """Evicts from one store; every method blocks and is safe to run beside others."""

    def __init__(
        self, store: Store, holders: Holders, marks: Marks, table: LeaseTable[Any], limits: Limits
    ) -> None:
        self._store = store
        self._holders = holders
        self._marks = marks
        self._table = table
        self.limits = limits

    def stored(self) -> list[Stored]:
        """Every environment, least recently used first."""
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

    def total(self) -> int:
        """Bytes of everything under the root; not counted where no quota asks for it."""
        return self.measure() if self.limits.quota else 0

    def measure(self) -> int:
        """Bytes of everything under the root, uv's cache too."""
        return unique_bytes([self._store.root])[0]

    def over(self, total: int, reserve: int = 0) -> bool:
        """Whether a limit is passed, with `reserve` bytes more than there are."""
        limits = self.limits
        if limits.quota and total + reserve > limits.quota:
            return True
        return self._free() < limits.min_free + reserve

    def reserve(self) -> int:
        """What the next environment may take: as much as the largest one did."""
        return min(max((item.bytes for item in self.stored()), default=0), self.limits.quota // 2)

    def cache_is_worth_cleaning(self, total: int) -> bool:
        """Whether much of uv's cache serves no environment any more."""
        _, alone = unique_bytes([self._store.cache])
        overrun = total - self.limits.quota if self.limits.quota else 0
        return alone > max(overrun // 2, _MB)

    def evict(self, digest: str) -> bool:
        """Delete one environment unless anybody uses it."""
        if not self._table.retire(digest):
            return False
        target = self._store.environment(digest)
        moved = self._marks.may_evict(digest, lambda: self._store.discard(target))
        if moved:
            self._store.empty_trash()
            shutil.rmtree(self._store.leases(digest), ignore_errors=True)
            _log.info("evicted environment %s", digest)
        return moved

    def run(self, *, reserve: int = 0, everything: bool = False) -> Evicted:
        """One round: until the limits are met, or all that nobody uses."""
        before = total = self.total()
        gone: list[str] = []
        wanted: list[str] = []
        for victim in self._candidates(total, reserve, everything=everything):
            if not everything and not self._aged(victim) and not self.over(total, reserve):
                break
            if self.evict(victim.digest):
                gone.append(victim.digest)
                total = self.total()
            else:
                wanted.append(victim.digest)
        return Evicted(
            digests=tuple(gone), wanted=tuple(wanted), bytes_before=before, bytes_after=total
        )

    def _candidates(self, total: int, reserve: int, *, everything: bool) -> list[Stored]:
        """More than the plan names when room is needed: one in use is passed over for the next."""
        stored = self.stored()
        if everything or self.over(total, reserve):
            return stored
        return choose_victims(
            stored, total=total, free=self._free(), now=time.time(), limits=self.limits
        )

    def _aged(self, item: Stored) -> bool:
        return bool(self.limits.max_age_s) and time.time() - item.last_used > self.limits.max_age_s

    def _free(self) -> int:
        return shutil.disk_usage(self._store.root).free

    def sweep(self) -> None:
        """Clean up after the dead: trash, heartbeats, scratch directories."""
        self._store.empty_trash()
        self._holders.bury()
        for name in self._store.scratch_names():
            if self._holders.dead(name.partition(".")[0]):
                remove_tree(self._store.scratch_root / name)


def evict_archives(store: Store, quota: int) -> list[str]:
    """Delete the archives used longest ago until the rest fits; whoever reads one keeps it open."""
    rows = [
        (_modified(store.archive_manifest(d)), _size(store.archive(d)), d) for d in store.archived()
    ]
    total = sum(size for _, size, _ in rows)
    gone = []
    for _, size, digest in sorted(rows):
        if not quota or total <= quota:
            break
        # The manifest first: without it there is no archive.
        store.archive_manifest(digest).unlink(missing_ok=True)
        store.archive(digest).unlink(missing_ok=True)
        total -= size
        gone.append(digest)
    return gone


def _modified(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
