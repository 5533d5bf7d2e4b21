"""Provides the environment of a digest: finds it, waits for another builder, or builds it.

existing -> on this disk or in an archive
provide  -> existing, otherwise one flight per digest:
              a build slot, then
              claim? build -> publish -> (in the background: bytecode, seal, archive, quota)
              no claim? check again until it exists or the claim is stale
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeVar

from flashpool.envs.building.builder import Order
from flashpool.envs.building.speculation import SpeculativeBuild
from flashpool.envs.concurrency.build_slots import BuildSlots
from flashpool.envs.concurrency.cancellation import run_in_thread_or_undo, run_in_thread_shielded
from flashpool.envs.concurrency.disk_threads import run_in_thread
from flashpool.envs.concurrency.single_flight import Report, SingleFlight
from flashpool.envs.errors import CompilerMissing, EnvironmentFailure, Tampered, is_full
from flashpool.envs.lease import Environment, Seconds
from flashpool.envs.resolving.base_interpreter import BaseFacts
from flashpool.envs.resolving.memo import Remembered
from flashpool.envs.resolving.plan import Plan
from flashpool.envs.resolving.spec import NormalSpec
from flashpool.envs.settings import EnvSettings
from flashpool.envs.store import manifest
from flashpool.envs.store.eviction import Evicted

from .lookup import Lookup
from .open_store import OpenStore
from .quota import Quota, Tell

__all__ = ["Provider", "Wanted"]

_log = logging.getLogger(__name__)

T = TypeVar("T")
#: First wait for another pod's build: only the file system shows that the pod has published.
_FIRST_WAIT_S: Final = 0.02
_LONGEST_WAIT_S: Final = 0.5

EnsureTools = Callable[["Provider", Report], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One digest, and how to build its environment."""

    digest: str
    #: The request's key: if a process has begun a build for this request, it also finishes it.
    key: str
    plan: Plan
    base: BaseFacts
    spec: NormalSpec
    draft: SpeculativeBuild | None = None


class Provider:
    """Provides environments from one open store."""

    def __init__(
        self,
        open_store: OpenStore,
        settings: EnvSettings,
        *,
        build_slots: BuildSlots,
        ensure_system: EnsureTools,
    ) -> None:
        self.open_store = open_store
        self.lookup = Lookup(open_store=open_store, settings=settings)
        self.quota = Quota(open_store, settings)
        self._settings = settings
        self._build_slots = build_slots
        self._finishers = asyncio.Semaphore(settings.builds)
        self._ensure_system = ensure_system
        self._builds: SingleFlight[Environment] = SingleFlight()
        self._fetches: SingleFlight[bool] = SingleFlight()
        self._finishing: dict[str, asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return f"<Provider {self.open_store.places.mode} {self.open_store.store.root}>"

    async def remembered(self, key: str) -> Remembered | None:
        """Return what the volume remembers of a request; None: nothing, or the volume fails."""
        try:
            return await run_in_thread(self.open_store.memo.get, key)
        except OSError as error:
            _log.warning("the shared memo cannot be read: %s", error)
            return None

    async def remember(self, key: str, digest: str, requirements: tuple[str, ...]) -> None:
        """Record for all pods what a request was resolved to."""
        if self.open_store.places.read_only:
            return
        try:
            await run_in_thread(self.open_store.memo.put, key, digest, requirements)
        except OSError as error:
            _log.warning("the shared memo cannot be written: %s", error)

    async def existing(self, digest: str, base: BaseFacts, report: Report) -> Environment | None:
        """Return the environment if nothing must be built for it, else None."""
        held = self.open_store.table.take(digest)
        if held is not None:
            self.open_store.table.give_back(digest)
            return held
        found = await run_in_thread(self.lookup.look, digest, "disk")
        if found is None and self.open_store.archives and await self._fetch(digest, base, report):
            found = await run_in_thread(self.lookup.look, digest, "archive")
        if found is not None:
            await self._finish_if_needed(digest)
        return found

    async def _fetch(self, digest: str, base: BaseFacts, report: Report) -> bool:
        async def unpack(tell: Report) -> bool:
            try:
                promised = await run_in_thread(self.lookup.promised, digest)
                if promised is None:
                    return False
                await self.quota.reserve(digest, promised.room, promised.room, tell)
                return await run_in_thread(self.lookup.fetch, promised, base)
            except OSError as error:
                if is_full(error):
                    raise
                _log.warning("archive %s cannot be read: %s", digest, error)
                return False
            finally:
                self.quota.finished(digest)

        return await self._fetches.join(digest, unpack, progress=report)

    async def provide(self, wanted: Wanted, seconds: Seconds, report: Report) -> Environment:
        """Return the environment, built if necessary; one flight, however many callers."""
        return await self._builds.join(
            wanted.digest, lambda line: self._provide(wanted, seconds, line), progress=report
        )

    async def _provide(self, wanted: Wanted, seconds: Seconds, report: Report) -> Environment:
        wait_s = _FIRST_WAIT_S
        told = False
        while True:
            found = await self.existing(wanted.digest, wanted.base, report)
            if found is not None:
                if told:  # the other builder may have died when it had just published
                    await run_in_thread(self.open_store.claims.elsewhere, wanted.key)
                return replace(found, seconds=seconds)
            # A build slot first: a claim without a slot would keep other processes waiting.
            async with self._build_slots.place(report, begun=True):
                if await self._claim(wanted.digest, wanted.key):
                    return await self._claimed(wanted, seconds, report)
            if not told:
                report("Another process is building this environment: waiting for it")
                told = True
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 1.5, _LONGEST_WAIT_S)

    async def _claimed(self, wanted: Wanted, seconds: Seconds, report: Report) -> Environment:
        """Check again with the claim taken, as another process may have published; then build."""
        try:
            found = await self.existing(wanted.digest, wanted.base, report)
            if found is None:
                found = await self._build(wanted, seconds, report)
        finally:
            # Work in the background keeps the claim, and its reserved bytes.
            if wanted.digest not in self._finishing:
                self.quota.finished(wanted.digest)
                await run_in_thread_shielded(self._release_claim, wanted.digest)
        return replace(found, seconds=found.seconds if not found.hit else seconds)

    async def _claim(self, digest: str, key: str | None = None) -> bool:
        """Take both claims or none.

        Otherwise two processes could hold one claim each, and wait for each other.
        """
        claims = self.open_store.claims

        def take() -> bool:
            return (key is None or not claims.elsewhere(key)) and claims.take(digest)

        def give_back(taken: bool) -> None:
            if taken and digest not in self._finishing:
                self._release_claim(digest)

        return await run_in_thread_or_undo(take, give_back)

    def _release_claim(self, digest: str) -> None:
        try:
            self.open_store.claims.release(digest)
        except OSError as error:
            _log.warning("the claim on %s stays until it is stale: %s", digest, error)

    async def _build(self, wanted: Wanted, seconds: Seconds, report: Report) -> Environment:
        await self.make_room()
        order = Order(
            digest=wanted.digest,
            plan=wanted.plan,
            base=wanted.base,
            roots=wanted.spec.lines,
            replace=wanted.digest in self.lookup.damaged,
            draft=wanted.draft,
        )
        if order.replace:
            # If a file was written to in place, the cache's file has changed as well: they may be
            # one file.
            await self.quota.clean_cache(tuple(item.name for item in wanted.plan.decisions))
        try:
            async with self.quota.guard():
                made = await self.with_tools(
                    lambda: self.open_store.builder.build(order, report, self.quota.admit), report
                )
        except Tampered as error:
            if order.replace:
                raise
            _log.warning("environment %s is built again: %s", wanted.digest, error)
            self.lookup.damaged.add(wanted.digest)
            return await self._build(wanted, seconds, report)
        self.open_store.counts.add("built")
        self.lookup.trust(wanted.digest, made.created)
        whole = replace(made.seconds, resolve=seconds.resolve)
        found = await run_in_thread(self.lookup.look, wanted.digest, "built", whole)
        if found is None:
            raise EnvironmentFailure(
                f"environment {wanted.digest} disappeared right after it was built",
                advice="another program deletes files on the volume; send the request again",
            )
        await self._finish_if_needed(wanted.digest)
        self.open_store.spare_virtualenvs.prepare(wanted.base)
        return found

    async def with_tools(self, work: Callable[[], Awaitable[T]], report: Report) -> T:
        """Do the work; do it again with build tools installed if they were missing, and allowed."""
        try:
            return await work()
        except CompilerMissing:
            if not self._settings.auto_build_tools:
                raise
        await self._ensure_system(self, report)
        return await work()

    # -- after publication ----------------------------------------------------------------

    async def _finish_if_needed(self, digest: str) -> None:
        """Start the background work, unless it runs already, here or in another process."""
        if digest in self._finishing or not await run_in_thread(self.lookup.unfinished, digest):
            return
        if not await self._claim(digest) or digest in self._finishing:
            return  # another process works on it, or another task of this one started meanwhile
        task = asyncio.get_running_loop().create_task(self._finish(digest))
        self._finishing[digest] = task

    async def _finish(self, digest: str) -> None:
        """Finish an environment that is in use already: bytecode, seal, archive, quota."""
        held = self.open_store.table.take(digest)
        try:
            if held is not None:  # otherwise it was evicted in the meantime
                await self._complete(digest)
        except Tampered as error:
            await self._withdraw(digest, error)
        except (OSError, EnvironmentFailure) as error:
            _log.warning("environment %s works, but is not finished: %s", digest, error)
        finally:
            if held is not None:
                self.open_store.table.give_back(digest)
            self._finishing.pop(digest, None)
            self.quota.finished(digest)
            await run_in_thread_shielded(self._release_claim, digest)
        await self.make_room(reserve=False)

    async def _complete(self, digest: str) -> None:
        path = self.open_store.store.environment(digest)
        if not await run_in_thread(manifest.sealed, path):
            async with self._finishers:
                await self.open_store.builder.finish(path, path)
        if self.open_store.archives_writable:
            await run_in_thread(self.lookup.pack, digest)

    async def _withdraw(self, digest: str, why: Tampered) -> None:
        """Withdraw an environment with wrong files.

        Running calls keep it, and the next request builds it again.
        """
        _log.warning("environment %s is withdrawn: %s", digest, why)
        self.lookup.damaged.add(digest)
        try:
            await run_in_thread_shielded(
                manifest.withdraw, self.open_store.store.environment(digest)
            )
        except OSError as error:
            _log.warning("environment %s cannot be withdrawn: %s", digest, error)
            return
        await run_in_thread(self.open_store.table.forget_lost, lambda one: one != digest)

    async def settled(self) -> None:
        """Wait until no work is left in the background."""
        while self._finishing:
            await asyncio.wait(list(self._finishing.values()))
        await self.open_store.speculative.settled()
        await self.open_store.spare_virtualenvs.settled()

    async def published(self) -> None:
        """Wait until no archive for other pods is being written or about to be written."""
        while self.open_store.archives_writable and self._finishing:
            await asyncio.wait(list(self._finishing.values()))

    def on_pressure(self, tell: Tell) -> None:
        """Set the callback for digests that are leased here and should be evicted."""
        self.quota.on_pressure(tell)

    async def make_room(self, *, reserve: bool = True) -> Evicted:
        """Evict until the limits are met; ``reserve``: with room for one more environment."""
        return await self.quota.make(reserve=reserve)

    async def evict_unused(self) -> Evicted:
        """Evict all environments that are unused."""
        return await self.quota.everything()

    async def is_there(self, digest: str) -> bool:
        """Return whether nothing must be built for the digest; False if the volume fails."""
        try:
            return await run_in_thread(self.present, digest) != "absent"
        except OSError:
            return False

    def present(self, digest: str) -> Literal["disk", "archive", "absent"]:
        """Return where a digest is ready; blocking."""
        if digest in self.open_store.store.digests():
            return "disk"
        return "archive" if self.lookup.archived(digest) else "absent"

    async def close(self) -> None:
        """Cancel what runs, and wait until it has ended."""
        await self._builds.close()
        await self._fetches.close()
        tasks = list(self._finishing.values())
        for digest, task in self._finishing.items():
            if self.open_store.archives_writable:
                _log.warning("the archive of %s is truncated: other pods have to build it", digest)
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self.open_store.speculative.settled()
        await self.open_store.spare_virtualenvs.close()
        await self.open_store.stubs.close()
