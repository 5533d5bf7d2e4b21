"""Every place for environments that this process has opened, each once.

    current      where environments are looked for and built; where the volume could not be
                 used, it is looked at again from time to time
    reopen       something failed: look again at settings and mounts; the volume may be gone,
                 or back. A place that is known already is taken up again, not opened anew
    beside       local disk, for what the volume has no room for

A store stays open until the end, for leases on what lies there may be out: its table
answers for them, and its heartbeat goes on. On one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from flashpool.envs.errors import StoreUnavailable
from flashpool.envs.lease import Environment, Lease
from flashpool.envs.settings import EnvSettings
from flashpool.envs.store.locations import Places, choose_places, local_places

from .open_store import HeartbeatThread, OpenStore, open_the_store
from .provider import Provider

__all__ = ["OpenStores"]

_log = logging.getLogger(__name__)
#: A look costs the volume a file and its deletion.
_LOOK_AGAIN_S: Final = 30.0
#: Seconds that whoever wants a lease waits for the heartbeats after a pause, together.
_RENEW_S: Final = 2.0


class OpenStores:
    """The open places of one process."""

    def __init__(self, settings: EnvSettings, provide: Callable[[OpenStore], Provider]) -> None:
        self._settings = settings
        self._provide = provide
        self._known: dict[Places, Provider] = {}
        self._heartbeats: list[HeartbeatThread] = []
        self._turn = asyncio.Lock()
        self._current: Provider | None = None
        #: Whether there is no volume, or none that can be written; and when that was found.
        self._makeshift = False
        self._looked = 0.0
        #: The latest round of heartbeats that somebody waited for.
        self._renewal: asyncio.Task[None] | None = None
        self._renewed = 0.0

    def __repr__(self) -> str:
        return f"<OpenStores {self._current or 'nothing'} of {len(self._known)}>"

    def __iter__(self) -> Iterator[Provider]:
        return iter(list(self._known.values()))

    def lease(self, digest: str, seen: Environment | None = None) -> Lease | None:
        """One more lease on what is held in any of them, as it was seen; no disk is asked."""
        for provider in self._known.values():
            table = provider.open_store.table
            environment = table.take(digest)
            if environment is None:
                continue
            if seen is None or seen.root == environment.root:
                return Lease(seen or environment, table.give_back)
            table.give_back(digest)  # the same environment, but not the copy that was seen
        return None

    @property
    def overdue(self) -> bool:
        """Whether leases may be void: this process was held up for longer than others wait."""
        return any(one.open_store.holders.overdue for one in self._known.values())

    async def renew(self) -> None:
        """Write heartbeats and leases anew before one is used; a volume that hangs is not awaited."""
        if self._renewal is None or self._renewal.done():
            self._renewal = asyncio.ensure_future(asyncio.to_thread(self._beat))
            self._renewed = time.monotonic()
        left_s = self._renewed + _RENEW_S - time.monotonic()
        if left_s > 0.0:
            await asyncio.wait({self._renewal}, timeout=left_s)

    def _beat(self) -> None:
        for provider in list(self._known.values()):
            try:
                provider.open_store.beat()
            except OSError as error:
                _log.warning("no heartbeat in %s: %s", provider.open_store.store.root, error)

    async def current(self) -> Provider:
        """The place in use."""
        if self._current is not None and not self._outdated():
            return self._current
        async with self._turn:
            if self._current is None:
                self._current = await self._look()
            elif self._outdated():
                self._current = await self._look_again(self._current)
            return self._current

    def _outdated(self) -> bool:
        return self._makeshift and time.monotonic() - self._looked > _LOOK_AGAIN_S

    async def _look_again(self, current: Provider) -> Provider:
        try:
            return await self._look()
        except (OSError, StoreUnavailable) as error:
            _log.warning("still without the volume: %s", error)
            return current

    async def reopen(self) -> Provider:
        """Look again where environments can lie."""
        async with self._turn:
            self._current = await self._look()
            return self._current

    async def _look(self) -> Provider:
        places = await asyncio.to_thread(choose_places, self._settings)
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
            elsewhere = await asyncio.to_thread(local_places, self._settings, str(error))
            return await self._at(elsewhere)

    async def beside(self, full: Provider) -> Provider | None:
        """A place on local disk; None where that is the very disk that is full."""
        if full.open_store.places.mode != "volume":
            return None
        async with self._turn:
            try:
                places = await asyncio.to_thread(local_places, self._settings, "the volume is full")
                if await asyncio.to_thread(_same_disk, places, full.open_store.places):
                    return None
                return await self._at(places)
            except (OSError, StoreUnavailable) as error:
                _log.warning("nor can local disk be used: %s", error)
                return None

    async def _at(self, places: Places) -> Provider:
        key = replace(places, note="")
        known = self._known.get(key)
        if known is not None:
            await asyncio.to_thread(known.open_store.take_up)
            return known
        open_store = await asyncio.to_thread(open_the_store, self._settings, places)
        self._heartbeats.append(HeartbeatThread(open_store, self._settings.beat_s))
        self._known[key] = self._provide(open_store)
        return self._known[key]

    async def close(self) -> None:
        """Cancel builds, release every lease, stop the heartbeats."""
        for provider in self:
            await provider.close()
        if self._renewal is not None:
            self._renewal.cancel()
        for heartbeat in self._heartbeats:
            await asyncio.to_thread(heartbeat.stop)
        self._heartbeats.clear()
        self._known.clear()
        self._current = None


def _same_disk(one: Places, other: Places) -> bool:
    return os.stat(one.local).st_dev == os.stat(other.local).st_dev
