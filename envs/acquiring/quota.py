"""Keeps a store within its limits: before a build, while it grows, before publication.

    make     evict until one more environment has room; uv's cache goes last
    guard    the same again and again while uv fills the disk, because sizes are unknown beforehand
    admit    the last check before publication: what will still be written (bytecode) counts as
             written. If everything idle is evicted and there is no room, wait for leases to be
             released, then refuse.
    reserve  the same check if the size is known: before an archive is unpacked

A quota therefore holds for existing files and for files that are about to be written, and
environments that calls use are never deleted for it. What other processes will write is unknown
here: each process checks its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from flashpool.envs.concurrency.cancellation import wait_for_shielded
from flashpool.envs.concurrency.disk_threads import run_in_thread
from flashpool.envs.concurrency.single_flight import Report
from flashpool.envs.errors import EnvironmentFailure, QuotaReached
from flashpool.envs.settings import EnvSettings
from flashpool.envs.store.apart import carried_out
from flashpool.envs.store.eviction import Evicted
from flashpool.envs.store.layout import remove_link
from flashpool.envs.store.volume_files import walk

from .open_store import OpenStore

__all__ = ["Quota", "Tell"]

Tell = Callable[[tuple[str, ...]], Iterable[str] | None]

_log = logging.getLogger(__name__)
_CLEANING_LIMIT_S: Final = 20.0
#: Idle processes exit within milliseconds.
_RELEASE_LOOK_S: Final = 0.02
_RELEASE_LIMIT_S: Final = 5.0
_MB: Final = 1024 * 1024
_BLOCK: Final = 4096
#: Size of bytecode relative to its source: with few comments, bytecode is the larger of the two.
_BYTECODE: Final = 2
#: Checks during a build may take up to a fifth of its time.
_LOOK_AGAIN_S: Final = 0.25
_REST: Final = 4


class Quota:
    """The limits of one open store; on one event loop."""

    def __init__(self, open_store: OpenStore, settings: EnvSettings) -> None:
        self._open_store = open_store
        self._settings = settings
        #: Bytes that published environments will still write, by digest.
        self._coming: dict[str, int] = {}
        self._pressure: list[Tell] = []

    def __repr__(self) -> str:
        return f"<Quota quota={self._open_store.evictor.limits.quota} coming={self._coming}>"

    def on_pressure(self, tell: Tell) -> None:
        """Set the callback for digests that are leased here and should be evicted.

        It returns those whose leases will be released within moments. Setting it twice changes
        nothing.
        """
        if tell not in self._pressure:
            self._pressure.append(tell)

    async def make(self, *, reserve: bool = True) -> Evicted:
        """Evict until the limits are met; ``reserve``: with room for one more environment."""
        more = await run_in_thread(self._open_store.evictor.reserve) if reserve else 0
        return await self._make(more)

    async def _make(self, more: int) -> Evicted:
        """Evict until there is room for ``more`` bytes.

        Wait for leases that are being released before reserving space; otherwise the quota would be
        exceeded.
        """
        try:
            evicted = await self._evict(more + sum(self._coming.values()))
            releasing = self._press(evicted.wanted)
            if more and releasing:
                await self._until_free(releasing)
                evicted = await self._evict(more + sum(self._coming.values()))
        except OSError as error:
            _log.warning("eviction failed: %s", error)
            return Evicted()
        return evicted

    def _press(self, digests: tuple[str, ...]) -> set[str]:
        if not digests:
            return set()
        return {one for tell in self._pressure for one in tell(digests) or ()}

    async def _until_free(self, digests: set[str]) -> None:
        deadline = time.monotonic() + _RELEASE_LIMIT_S
        while time.monotonic() < deadline:
            held = self._open_store.table.held()
            if not any(held.get(digest) for digest in digests):
                return
            await asyncio.sleep(_RELEASE_LOOK_S)

    async def _evict(self, more: int) -> Evicted:
        evictor = self._open_store.evictor
        if not await run_in_thread(evictor.is_over, more) and not evictor.limits.max_age_s:
            return Evicted()
        evicted = await run_in_thread(evictor.run, reserve=more)
        if not await run_in_thread(evictor.is_over, more):
            return evicted
        return replace(evicted, cache_cleaned=await self.clean_cache())

    async def everything(self) -> Evicted:
        """Evict all unused environments and uv's cache, because the disk is full."""
        try:
            evicted = await run_in_thread(self._open_store.evictor.run, everything=True)
        except OSError as error:
            _log.warning("eviction failed: %s", error)
            evicted = Evicted()
        return replace(evicted, cache_cleaned=await self.clean_cache())

    async def clean_cache(self, packages: tuple[str, ...] = ()) -> bool:
        """Remove some packages, or all, from uv's cache; return False while a build uses it."""
        # If a link is in its place, uv would empty the directory that the link leads to.
        await run_in_thread(remove_link, self._open_store.uv.cache)
        cleaning = self._open_store.uv.clean_cache(self._open_store.store.root, packages)
        try:
            await wait_for_shielded(cleaning, _CLEANING_LIMIT_S)
        except (asyncio.TimeoutError, EnvironmentFailure) as error:
            # Another build uses the cache: its files stay, and the cache is cleaned another time.
            _log.info("uv's cache is not cleaned now: %s", error)
            return False
        return True

    @asynccontextmanager
    async def guard(self) -> AsyncIterator[None]:
        """Evict as the disk fills, while uv works in this block."""
        if not self._open_store.evictor.limits.quota:
            yield
            return
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait({watching})

    async def _watch(self) -> None:
        evictor = self._open_store.evictor
        while True:
            began = time.monotonic()
            more = sum(self._coming.values())
            try:
                if await run_in_thread(evictor.is_over, more):
                    await run_in_thread(evictor.run, reserve=more)
            except OSError as error:
                _log.warning("eviction failed: %s", error)
            await asyncio.sleep(max(_LOOK_AGAIN_S, _REST * (time.monotonic() - began)))

    async def admit(self, digest: str, environment: Path, report: Report) -> None:
        """Return once there is room for a built environment, including its bytecode; or refuse."""
        if not self._open_store.evictor.limits.quota:
            return
        coming = await run_in_thread(_still_to_come, environment)
        whole = coming + await run_in_thread(_size_of, environment)
        await self.reserve(digest, coming, whole, report)

    async def reserve(self, digest: str, coming: int, whole: int, report: Report) -> None:
        """Return once ``coming`` bytes may be written for a digest, ``whole`` in the end; or
        refuse.

        The bytes count as written until `finished`.
        """
        quota = self._open_store.evictor.limits.quota
        if not quota:
            await self._make(coming)
            return
        limit = time.monotonic() + self._settings.room_wait_s
        told = False
        while not await self._fits(coming):
            if time.monotonic() > limit:
                raise _refusal(quota, whole)
            if not told:
                report("Environments in use fill the quota: waiting until one is released")
                told = True
            await asyncio.sleep(_LOOK_AGAIN_S)
        self._coming[digest] = coming

    async def _fits(self, coming: int) -> bool:
        await self._make(coming)
        usage = await run_in_thread(self._open_store.evictor.usage)
        quota = self._open_store.evictor.limits.quota
        return usage.total + coming + sum(self._coming.values()) <= quota

    def finished(self, digest: str) -> None:
        """Release a reservation: its bytes are written, or never will be."""
        self._coming.pop(digest, None)


def _refusal(quota: int, needed: int) -> QuotaReached:
    if needed > quota:
        return QuotaReached(
            f"The environment takes {needed / _MB:.0f} MB, more than the quota of "
            f"{quota / _MB:.0f} MB for all",
            advice="raise FLASHPOOL_ENV_QUOTA_MB, or ask for fewer packages",
        )
    return QuotaReached(
        f"Environments in use fill the quota of {quota / _MB:.0f} MB; this one takes "
        f"{needed / _MB:.0f} MB",
        advice="ask again when calls have ended, or raise FLASHPOOL_ENV_QUOTA_MB",
    )


@carried_out
def _still_to_come(environment: Path) -> int:
    """Return the most bytes that bytecode of every module, and a seal of every file, may take."""
    size = files = 0
    for folder, _, names in walk(environment):
        modules = [name for name in names if name.endswith(".py")]
        files += len(names) + len(modules)
        size += _BLOCK if modules else 0
        for name in modules:
            source = os.lstat(os.path.join(folder, name)).st_size
            size += _rounded(source * _BYTECODE)
    return size + _rounded(files * 200)


@carried_out
def _size_of(environment: Path) -> int:
    sizes = (
        os.lstat(os.path.join(folder, name)).st_size
        for folder, _, names in walk(environment)
        for name in names
    )
    return sum(_rounded(size) for size in sizes)


def _rounded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
