"""The parts of an open store, connected to each other; and its heartbeat.

    OpenStore        local store: holders, marks, lease table, claims, evictor, builder
                     shared store: memo, preloads, archives, claims between pods
    HeartbeatThread  writes heartbeats and releases idle environments

In volume and local mode the two stores are one object, with one set of holders. The heartbeat is a
thread because a process whose event loop is busy for a minute must not look dead to other pods.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from flashpool.envs.building.builder import Builder
from flashpool.envs.building.spare_virtualenvs import SpareVirtualenvs
from flashpool.envs.building.speculation import SpeculativeBuilds
from flashpool.envs.concurrency.disk_threads import DiskThreads
from flashpool.envs.lease import Environment
from flashpool.envs.resolving.base_stubs import Stubs
from flashpool.envs.resolving.memo import StoredMemo
from flashpool.envs.settings import EnvSettings
from flashpool.envs.store.claims import Claims
from flashpool.envs.store.copies import Copies
from flashpool.envs.store.counts import StoreCounts, Tally
from flashpool.envs.store.eviction import Evictor, StoreLimits, sweep
from flashpool.envs.store.file_copies import link_mode_for
from flashpool.envs.store.layout import Store, is_directory
from flashpool.envs.store.lease_files import LeaseTable, Marks
from flashpool.envs.store.liveness import Liveness
from flashpool.envs.store.locations import Places
from flashpool.envs.uv_cli import Uv, find_uv

__all__ = ["HeartbeatThread", "OpenStore", "Pulse", "open_the_store"]

_log = logging.getLogger(__name__)
_MB: Final = 1024 * 1024
#: Heartbeats between two clean-ups, and between two counts of the store's contents.
_SWEEP_EVERY: Final = 30
_LOOK_EVERY: Final = 5
#: A heartbeat takes milliseconds and a sweep seconds; on a volume that hangs, they never end.
_STOP_LIMIT_S: Final = 10.0
#: Seconds between two checks of the files on the volume whose number only grows.
_TRIM_S: Final = 3600.0
#: Most characters of a problem in statistics.
_PROBLEM: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """The state of the heartbeat in one store."""

    root: str
    #: Seconds since the last heartbeat.
    age_s: float
    #: Steps that failed since the start; and the errors of the steps whose last run failed.
    failures: int
    problem: str
    tally: Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenStore:
    """One open store of environments."""

    places: Places
    #: The threads in which every operation on either store runs.
    disk: DiskThreads
    store: Store
    shared: Store
    holders: Liveness
    shared_holders: Liveness
    marks: Marks
    table: LeaseTable[Environment]
    copies: Copies
    claims: Claims
    memo: StoredMemo
    evictor: Evictor
    builder: Builder
    spare_virtualenvs: SpareVirtualenvs
    speculative: SpeculativeBuilds
    stubs: Stubs
    uv: Uv
    trims: Seldom
    counts: StoreCounts

    @property
    def archives(self) -> bool:
        """Return whether environments are shared as archives."""
        return self.places.mode == "archive"

    @property
    def archives_writable(self) -> bool:
        return self.archives and not self.places.read_only

    def beat(self) -> None:
        """Write a heartbeat in each store; blocking, but raises `DiskHangs` if the volume hangs."""
        if self.disk.watch is not None:
            self.disk.watch.check()
        # This comes first: if the volume is gone, the rest raises.
        self.table.forget_lost(self.copies.is_the_same)
        self.copies.forget_all_but(self.table.held())
        if not self.holders.beat():
            self.table.mark_again()
            # Check again: environments may have been deleted before their marks were restored.
            self.table.forget_lost(lambda digest: is_directory(self.store.environment(digest)))
        if self.archives_writable:
            self.shared_holders.beat()

    def sweep(self, *, trimmed: bool = True) -> list[str]:
        """Clean up after dead processes in each store, and delete old environments; blocking.

        Return what could not be done. ``trimmed``: also trim what only grows, once an hour.
        """
        trimmed = trimmed and self.trims.due()
        problems = sweep(self.store, self.holders, trimmed=trimmed)
        try:
            self.evictor.evict_aged()
        except OSError as error:
            problems.append(f"old environments: {error}")
        if self.archives_writable:
            problems += sweep(self.shared, self.shared_holders, trimmed=trimmed)
        return problems

    def take_up(self) -> None:
        """Use the store again after a failure: directories may be missing; blocking."""
        self.store.prepare()
        self.beat()

    def close(self) -> None:
        """Release every lease, and stop being a holder; blocking."""
        self.table.clear()
        self.holders.close()
        if self.archives_writable:
            self.shared_holders.close()


class Seldom:
    """Says when periodic work is due: the first to ask in each period does it."""

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._last = float("-inf")
        self._lock = threading.Lock()

    def due(self) -> bool:
        """Return whether the work is due; then it is not due again for a period."""
        with self._lock:
            now = time.monotonic()
            if now - self._last < self._period_s:
                return False
            self._last = now
            return True


def open_the_store(settings: EnvSettings, places: Places, disk: DiskThreads) -> OpenStore:
    """Make directories, become a holder, clean up after dead processes; blocking."""
    store = Store(places.local)
    store.prepare()
    shared = store if places.shared == places.local else Store(places.shared)
    if shared is not store and not places.read_only:
        shared.prepare()
    holders = _holders(store, settings)
    shared_holders = holders if shared is store else _holders(shared, settings)
    marks = Marks(store, holders)
    table: LeaseTable[Environment] = LeaseTable(marks, hold_s=settings.hold_s)
    uv = Uv(
        executable=find_uv(settings),
        cache=places.cache,
        settings=_linking(settings, places),
        limit_s=settings.build_timeout_s,
    )
    spare_virtualenvs = SpareVirtualenvs(uv, store, holders.me)
    claims = _claims(places, store, shared, holders, shared_holders)
    counts = StoreCounts()
    evictor = Evictor(store, holders, marks, table, limits_of(settings), counts)
    open_store = OpenStore(
        places=places,
        disk=disk,
        store=store,
        shared=shared,
        holders=holders,
        shared_holders=shared_holders,
        marks=marks,
        table=table,
        copies=Copies(store),
        claims=claims,
        memo=StoredMemo(
            shared,
            settings.memo_s,
            settings.volume_key,
            None if places.read_only else shared_holders,
        ),
        evictor=evictor,
        builder=Builder(uv=uv, store=store, spare_virtualenvs=spare_virtualenvs, settings=settings),
        spare_virtualenvs=spare_virtualenvs,
        speculative=SpeculativeBuilds(uv, spare_virtualenvs, claims, evictor.at_ease),
        stubs=Stubs(store, holders.me),
        uv=uv,
        trims=Seldom(_TRIM_S),
        counts=counts,
    )
    open_store.beat()
    for problem in open_store.sweep(trimmed=False):
        _log.warning("%s is not cleaned up: %s", store, problem)
    _log.info("environments lie in %s (%s mode)", places.local, places.mode)
    return open_store


def _linking(settings: EnvSettings, places: Places) -> EnvSettings:
    """Copy from a cache elsewhere; decide how to link from a cache beside the store."""
    if places.cache.parent != places.local:
        return replace(settings, link_mode="copy")
    if settings.link_mode != "auto":
        return settings
    return replace(settings, link_mode=link_mode_for(places.cache))


def limits_of(settings: EnvSettings) -> StoreLimits:
    """Return the limits in bytes."""
    return StoreLimits(
        quota=settings.quota_mb * _MB,
        min_free=settings.min_free_mb * _MB,
        max_age_s=settings.max_age_s,
    )


def _holders(store: Store, settings: EnvSettings) -> Liveness:
    return Liveness(
        store.holders,
        heartbeat_s=settings.beat_s,
        stale_s=settings.stale_s,
        claim_stale_s=settings.claim_stale_s,
    )


def _claims(
    places: Places, store: Store, shared: Store, mine: Liveness, common: Liveness
) -> Claims:
    """Return claims that every process sees which may build the same environment."""
    if places.read_only:
        return Claims(store, mine)
    return Claims(shared, common)


class HeartbeatThread:
    """The heartbeat thread of an open store; no error ends it."""

    def __init__(self, open_store: OpenStore, period_s: float) -> None:
        self._open_store = open_store
        self.disk = open_store.disk
        self._period_s = period_s
        self._stop = threading.Event()
        self._beaten = time.monotonic()
        self._failures = 0
        #: The last error of each failing step; each is logged once.
        self._problems: dict[str, str] = {}
        self._thread = threading.Thread(
            target=self._run, name="flashpool-envs-heartbeat", daemon=True
        )
        self._thread.start()

    @property
    def pulse(self) -> Pulse:
        """Return the state of the heartbeats, for statistics."""
        problems = "; ".join(f"{step}: {text}" for step, text in dict(self._problems).items())
        return Pulse(
            root=str(self._open_store.store.root),
            age_s=time.monotonic() - self._beaten,
            failures=self._failures,
            problem=problems[:_PROBLEM],
            tally=self._open_store.counts.tally,
        )

    def _run(self) -> None:
        count = 0
        while not self._stop.wait(self._period_s):
            count += 1
            if self._did("no heartbeat", self._open_store.beat):
                self._beaten = time.monotonic()
            self._did("no look at leases", self._open_store.table.sweep)
            if count % _LOOK_EVERY == 1:
                self._did("no count of environments", self._count)
            if count % _SWEEP_EVERY == 0:
                self._did("no cleaning up", self._sweep)

    def _count(self) -> None:
        self._open_store.counts.look(self._open_store.store)

    def _sweep(self) -> None:
        problems = self._open_store.sweep()
        if problems:
            raise OSError("; ".join(problems))

    def _did(self, step: str, act: Callable[[], object]) -> bool:
        """Run a step; return whether it succeeded.

        A failed step does not keep the others from running: a volume that was gone may be back at
        the next one. Without heartbeats, other processes consider this process dead, and delete
        environments that its calls use. On a volume that hangs, no step is begun.
        """
        try:
            if self.disk.watch is not None:
                self.disk.watch.check()
            act()
        except OSError as error:
            self._failed(step, str(error), None)
        except Exception as error:  # noqa: BLE001 - whatever the error, the next heartbeat is due
            self._failed(step, f"{type(error).__name__}: {error}", error)
        else:
            self._problems.pop(step, None)
            return True
        return False

    def _failed(self, step: str, problem: str, error: Exception | None) -> None:
        self._failures += 1
        if self._problems.get(step) != problem:
            _log.warning("%s in %s: %s", step, self._open_store.store.root, problem, exc_info=error)
        self._problems[step] = problem

    def ask_to_stop(self) -> None:
        """Ask the thread to stop, even if it hangs now."""
        self._stop.set()

    def stop(self) -> None:
        """Stop the thread, and close the store; blocking."""
        self.ask_to_stop()
        self._thread.join(_STOP_LIMIT_S)
        if self._thread.is_alive():
            _log.warning("%s does not respond: its leases will expire", self._open_store.store)
            return
        try:
            self._open_store.close()
        except OSError as error:
            _log.info(
                "%s could not be closed, and its leases will expire: %s",
                self._open_store.store,
                error,
            )
