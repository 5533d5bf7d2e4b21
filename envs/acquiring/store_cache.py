"""Every store that this process has opened, each once.

    current      the store in which environments are looked for and built; if the volume could not
                 be used, it is checked again from time to time
    reopen       after a failure: check settings and mounts again; the volume may be gone, or back.
                 A known store is reused
    beside       local disk, for what does not fit on the volume

A store stays open until the end, because there may be leases on its environments: its table counts
them, and its heartbeat continues. Runs on one event loop.

A volume that hangs is treated as missing: it is not accessed, and local disk is used until it
answers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from flashpool.envs.concurrency.disk_hangs import DiskHangs
from flashpool.envs.concurrency.disk_threads import DiskThreads
from flashpool.envs.concurrency.volume_watch import VolumeWatch
from flashpool.envs.errors import StoreUnavailable
from flashpool.envs.lease import Environment, Lease
from flashpool.envs.settings import EnvSettings
from flashpool.envs.store.apart import carried_out, end_idle_stand_ins
from flashpool.envs.store.locations import Places, choose_places, local_places, volume_of

from .open_store import HeartbeatThread, OpenStore, Pulse, open_the_store
from .provider import Provider

__all__ = ["OpenStores"]

_log = logging.getLogger(__name__)
#: A check makes the volume create and delete a file.
_LOOK_AGAIN_S: Final = 30.0
#: Limit for finishing all work when a process stops using its stores, and for a volume that does
#: not answer then.
_CLOSE_LIMIT_S: Final = 20.0
_CLOSING_SILENCE_S: Final = 2.0
#: Cancelled work is expected to have stopped after this time.
_GIVE_UP_S: Final = 1.0
#: Seconds that a request for a lease waits for all heartbeats together, after a pause.
_RENEW_S: Final = 2.0


class OpenStores:
    """The open stores of one process."""

    def __init__(self, settings: EnvSettings, provide: Callable[[OpenStore], Provider]) -> None:
        self._settings = settings
        self._provide = provide
        self._known: dict[Places, Provider] = {}
        #: Called, in any thread, with the digest of an environment that was lost or replaced.
        self.on_lost: Callable[[str], None] = lambda _digest: None
        self._local = DiskThreads("local disk")
        self._volume = self._local
        self._heartbeats: list[HeartbeatThread] = []
        self._turn = asyncio.Lock()
        self._current: Provider | None = None
        #: Whether the volume is missing or not writable; and when it was last checked.
        self._makeshift = False
        self._looked = 0.0
        #: The latest round of heartbeats that a caller awaited.
        self._renewal: asyncio.Future[list[None]] | None = None
        self._renewed = 0.0

    def __repr__(self) -> str:
        return f"<OpenStores {self._current or 'nothing'} of {len(self._known)}>"

    def __iter__(self) -> Iterator[Provider]:
        return iter(list(self._known.values()))

    def lease(self, digest: str, seen: Environment | None = None) -> Lease | None:
        """Return another lease on an environment that any store holds; does not access the disk."""
        for provider in self._known.values():
            table = provider.open_store.table
            if provider.open_store.disk.hangs and not table.held().get(digest):
                continue  # no process runs in it, and none can be started there
            environment = table.take(digest)
            if environment is None:
                continue
            if seen is None or seen.root == environment.root:
                return Lease(seen or environment, table.give_back)
            table.give_back(digest)  # the same environment, but another copy than the one seen
        return None

    @property
    def overdue(self) -> bool:
        """Whether leases may be void.

        This process may have been suspended for longer than other processes wait for its heartbeat.
        """
        return any(one.open_store.holders.overdue for one in self._known.values())

    async def renew(self) -> None:
        """Renew heartbeats and leases before a lease is used.

        Waits at most `_RENEW_S` for a volume that hangs.
        """
        if self._renewal is None or self._renewal.done():
            beats = [_beat(provider.open_store) for provider in self._known.values()]
            self._renewal = asyncio.gather(*beats)
            self._renewed = time.monotonic()
        left_s = self._renewed + _RENEW_S - time.monotonic()
        if left_s > 0.0:
            await asyncio.wait({self._renewal}, timeout=left_s)

    async def current(self) -> Provider:
        """Return the store in use."""
        if self._current is not None and not self._outdated(self._current):
            return self._current
        async with self._turn:
            if self._current is None or self._current.open_store.disk.hangs:
                self._current = await self._look()
            elif self._outdated(self._current):
                self._current = await self._look_again(self._current)
            return self._current

    def _outdated(self, current: Provider) -> bool:
        if current.open_store.disk.hangs:
            return True
        return self._makeshift and time.monotonic() - self._looked > _LOOK_AGAIN_S

    async def _look_again(self, current: Provider) -> Provider:
        try:
            return await self._look()
        except (OSError, StoreUnavailable) as error:
            _log.warning("the volume is still unavailable: %s", error)
            return current

    async def reopen(self) -> Provider:
        """Choose again where environments are stored."""
        async with self._turn:
            self._current = await self._look()
            return self._current

    async def _look(self) -> Provider:
        places = await self._choose()
        self._looked = time.monotonic()
        self._makeshift = places.mode == "local" or places.read_only
        try:
            return await self._at(places)
        except OSError as error:
            if places.mode == "local":
                raise
            self._makeshift = True
            _log.warning(
                "%s cannot be used (%s): environments go to local disk", places.shared, error
            )
            return await self._at(await self._local_places(str(error)))

    async def _choose(self) -> Places:
        if self._volume is self._local and (volume := volume_of(self._settings)) is not None:
            self._volume = DiskThreads("volume", watch=VolumeWatch(volume))
        try:
            return await self._volume.run(choose_places, self._settings)
        except DiskHangs as error:
            _log.warning("%s: environments go to local disk", error)
            return await self._local_places(str(error))

    async def _local_places(self, note: str) -> Places:
        return await self._local.run(local_places, self._settings, note)

    def _disk_of(self, places: Places) -> DiskThreads:
        return self._local if places.mode == "local" else self._volume

    async def beside(self, full: Provider) -> Provider | None:
        """Return a store on local disk; None if that is the full disk itself."""
        if full.open_store.places.mode != "volume":
            return None
        async with self._turn:
            try:
                places = await self._local_places("the volume is full")
                if await self._volume.run(_same_disk, places, full.open_store.places):
                    return None
                return await self._at(places)
            except (OSError, StoreUnavailable) as error:
                _log.warning("local disk cannot be used either: %s", error)
                return None

    async def _at(self, places: Places) -> Provider:
        key = replace(places, note="")
        known, disk = self._known.get(key), self._disk_of(places)
        if known is not None:
            await disk.run(known.open_store.take_up)
            return known
        open_store = await disk.run(open_the_store, self._settings, places, disk)
        open_store.table.on_lost = self.on_lost
        self._heartbeats.append(HeartbeatThread(open_store, self._settings.beat_s))
        self._known[key] = self._provide(open_store)
        return self._known[key]

    def build_failed(self) -> None:
        """Count a build that failed outside any store."""
        if self._current is not None:
            self._current.open_store.counts.add("failed")

    def pulses(self) -> list[Pulse]:
        """Return the state of the heartbeats."""
        return [heartbeat.pulse for heartbeat in self._heartbeats]

    async def close(self, end_flights: Callable[[], Awaitable[None]]) -> None:
        """Finish or cancel all work, cancel builds, release every lease, stop the heartbeats.

        All of that within a limit: work that a disk blocks is abandoned.
        """
        if self._renewal is not None:
            self._renewal.cancel()
        watch = self._volume.watch
        if watch is not None:
            watch.limit_s = min(watch.limit_s, _CLOSING_SILENCE_S)
        closing = asyncio.ensure_future(self._close(end_flights))
        try:
            await asyncio.wait({closing}, timeout=_CLOSE_LIMIT_S)
            if not closing.done():
                _log.warning("the stores of environments are left as they are: %r", self._volume)
                for disk in (self._volume, self._local):
                    disk.abandon()
                await asyncio.wait({closing}, timeout=_GIVE_UP_S)
        finally:
            closing.cancel()
        if closing.done():
            closing.result()
        self._known.clear()
        self._current = None

    async def _close(self, end_flights: Callable[[], Awaitable[None]]) -> None:
        await end_flights()
        for provider in self:
            try:
                with provider.open_store.disk.chosen():
                    await provider.close()
            except DiskHangs as error:
                _log.warning("%s: its scratch directory is not cleaned up", error)
        for heartbeat in self._heartbeats:
            heartbeat.ask_to_stop()
        for heartbeat in self._heartbeats:
            try:
                await heartbeat.disk.run(heartbeat.stop)
            except DiskHangs as error:
                _log.warning("%s: its leases will expire", error)
        self._heartbeats.clear()
        if self._volume.watch is not None:
            await self._local.run(self._volume.watch.stop)
        await self._local.run(end_idle_stand_ins)
        self._volume = self._local


def _same_disk(one: Places, other: Places) -> bool:
    return _device(one.local) == _device(other.local)


@carried_out
def _device(folder: Path) -> int:
    return os.stat(folder).st_dev


async def _beat(open_store: OpenStore) -> None:
    try:
        await open_store.disk.run(open_store.beat)
    except OSError as error:
        _log.warning("no heartbeat in %s: %s", open_store.store.root, error)
