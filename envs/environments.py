"""The facade: specs in, leases out.

    acquire(spec)
      memo hit      two look-ups, one lease          (no disk, no process)
      otherwise     one flight per spec:
        normalise -> base facts -> request key -> remembered failure?
        satisfied by the base? -> the base
        remembered on the volume, and there? -> that
        resolve -> digest -> one flight per digest:
          on disk? archive? else claim -> build -> publish
      then a lease from the table, for every waiter its own

Blocking work runs in threads, uv as a child process; the loop never waits. Use
one instance on one event loop.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, TypeVar

from .base import BaseFacts, Bases
from .builder import Seconds, scratch
from .digest import digest_of, request_key
from .environment import Environment, Explanation, Lease
from .errors import (
    BuildTimeout,
    DiskFull,
    EnvironmentFailure,
    RegistryUnreachable,
    StoreUnavailable,
)
from .failures import Failures
from .flights import Flights, Report
from .ground import Ground, Pulse, open_ground
from .memo import Memo, Remembered
from .plan import Plan, from_base
from .preloads import read_preloads, write_preloads
from .provider import Provider, Wanted
from .resolver import Resolver
from .settings import EnvSettings
from .spec import NormalSpec, Spec, normalise
from .system_packages import SystemPackages

__all__ = ["Environments"]

_log = logging.getLogger(__name__)
_TRIES: Final = 5
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

T = TypeVar("T")


class Environments:
    """All environments of one process."""

    def __init__(self, settings: EnvSettings) -> None:
        self.settings = settings
        self._memo = Memo(settings.memo_s)
        self._base_environments: dict[str, Environment] = {}
        self._failures = Failures(settings.failure_s)
        self._bases = Bases()
        self._pythons: dict[str, Path] = {}
        self._flights: Flights[Environment] = Flights()
        self._opening = asyncio.Lock()
        self._provider: Provider | None = None
        self._system: SystemPackages | None = None
        self._pulses: list[Pulse] = []

    def __repr__(self) -> str:
        return f"<Environments {self._provider or 'not opened'}>"

    async def __aenter__(self) -> Environments:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def acquire(
        self, spec: Spec, *, progress: Report | None = None, deadline: float | None = None
    ) -> Lease:
        """Lease the environment a spec means; `deadline` is a time of `time.monotonic()`."""
        digest = self._memo.get(spec)
        if digest is not None:
            lease = self._lease(digest)
            if lease is not None:
                return lease
        return await self._acquire_slowly(spec, progress, deadline)

    def _lease(self, digest: str, seen: Environment | None = None) -> Lease | None:
        base = self._base_environments.get(digest)
        if base is not None:
            return Lease(seen or base, None)
        if self._provider is None:
            return None
        table = self._provider.ground.table
        environment = table.take(digest)
        return None if environment is None else Lease(seen or environment, table.give_back)

    async def _acquire_slowly(
        self, spec: Spec, progress: Report | None, deadline: float | None
    ) -> Lease:
        for _ in range(_TRIES):
            seen = await self._flights.join(
                spec,
                lambda report: self._limited(spec, report),
                progress=progress,
                deadline=deadline,
            )
            # Between the landing and this line an eviction may have taken it: ask again.
            lease = self._lease(seen.digest, seen)
            if lease is not None:
                return lease
        raise StoreUnavailable(
            "The environment was evicted as fast as it was built",
            advice="raise FLASHPOOL_ENV_QUOTA_MB: it holds less than one environment",
        )

    async def _limited(self, spec: Spec, report: Report) -> Environment:
        try:
            return await asyncio.wait_for(
                self._recovering(spec, report), self.settings.build_timeout_s
            )
        except asyncio.TimeoutError:
            raise BuildTimeout(
                f"The environment was not built within {self.settings.build_timeout_s:g} s",
                advice="raise FLASHPOOL_BUILD_TIMEOUT_S, or build it beforehand",
            ) from None

    async def _recovering(self, spec: Spec, report: Report) -> Environment:
        """Once more after a full disk (with room made) or a store that went away."""
        provider = await self._open()
        try:
            return await self._prepare(spec, provider, report)
        except (DiskFull, OSError) as error:
            report("No space left: evicting environments" if _is_full(error) else f"Store: {error}")
            _log.warning("second try for an environment: %s", error)
            provider = await (self._make_room(provider) if _is_full(error) else self._reopen())
        try:
            return await self._prepare(spec, provider, report)
        except (DiskFull, OSError) as error:
            raise _hopeless(error) from error

    async def _make_room(self, provider: Provider) -> Provider:
        await provider.evict_unused()
        return provider

    # -- from spec to environment ---------------------------------------------------------

    async def _prepare(self, spec: Spec, provider: Provider, report: Report) -> Environment:
        normal, base, key = await self._understand(spec, provider)
        self._recall(spec, key)
        try:
            return await self._found_or_made(spec, normal, base, key, provider, report)
        except EnvironmentFailure as failure:
            self._failures.remember(key, failure)
            raise

    async def _understand(
        self, spec: Spec, provider: Provider
    ) -> tuple[NormalSpec, BaseFacts, str]:
        normal = await asyncio.to_thread(normalise, spec, references=self.settings.references)
        base = await self._base(normal, provider)
        key = request_key(normal, base, self.settings)
        return normal, base, key

    async def _base(self, normal: NormalSpec, provider: Provider) -> BaseFacts:
        base = await self._bases.facts(self.settings.base_python)
        version = normal.python_version
        if version is None or f"{base.version}.".startswith(f"{version}."):
            return base
        if version not in self._pythons:
            python = await provider.ground.uv.find_python(version, provider.ground.store.root)
            self._pythons[version] = python
        # Another interpreter has packages of its own machine's history, not of the image's.
        return (await self._bases.facts(self._pythons[version])).bare()

    def _recall(self, spec: Spec, key: str) -> None:
        if spec.refresh:
            self._failures.forget(key)
            return
        failure = self._failures.recall(key)
        if failure is not None:
            raise failure

    async def _found_or_made(
        self,
        spec: Spec,
        normal: NormalSpec,
        base: BaseFacts,
        key: str,
        provider: Provider,
        report: Report,
    ) -> Environment:
        await self._ensure_system(normal.system_packages, provider, report)
        plan = self._from_base(normal, base)
        if plan is not None:
            return self._base_environment(spec, base)
        remembered = await provider.remembered(key)
        if remembered is not None and remembered.fresh and not spec.refresh:
            found = await provider.existing(remembered.digest, base)
            if found is not None:
                self._memo.put(spec, found.digest, age_s=remembered.age_s)
                return found
        try:
            return await self._resolved(spec, normal, base, key, provider, report)
        except RegistryUnreachable as failure:
            return await self._as_last_time(failure, remembered, base, provider, report)

    def _from_base(self, normal: NormalSpec, base: BaseFacts) -> Plan | None:
        plan = from_base(normal, base)
        if plan is None or not normal.requirements:
            return plan
        # A base without cloudpickle or tblib gets a layer that has them.
        pins = {pin.partition("==")[0] for pin in self.settings.runtime_pins}
        return plan if pins <= set(base.packages) else None

    def _base_environment(self, spec: Spec, base: BaseFacts) -> Environment:
        environment = Environment(
            digest=base.fingerprint,
            python=base.python,
            root=None,
            site_dirs=base.site_dirs,
            mode="base",
            origin="base",
        )
        self._base_environments[environment.digest] = environment
        self._memo.put(spec, environment.digest)
        return environment

    async def _resolved(
        self,
        spec: Spec,
        normal: NormalSpec,
        base: BaseFacts,
        key: str,
        provider: Provider,
        report: Report,
    ) -> Environment:
        loop = asyncio.get_running_loop()
        began = loop.time()
        plan = await self._plan(normal, base, provider, report, refresh=spec.refresh)
        seconds = Seconds(resolve=loop.time() - began)
        if plan.mode == "layer" and not plan.lines:
            return self._base_environment(spec, base)
        wanted = Wanted(digest=self._digest(plan, normal, base), plan=plan, base=base, spec=normal)
        found = await provider.provide(wanted, seconds, report)
        await provider.remember(key, found.digest, normal.lines)
        self._memo.put(replace(spec, refresh=False), found.digest)
        return found

    async def _plan(
        self,
        normal: NormalSpec,
        base: BaseFacts,
        provider: Provider,
        report: Report,
        *,
        refresh: bool = False,
    ) -> Plan:
        ground = provider.ground
        resolver = Resolver(uv=ground.uv, pins=self.settings.runtime_pins)
        async with scratch(ground.store, ground.holders.me) as folder:
            return await resolver.plan(normal, base, folder, refresh=refresh, progress=report)

    def _digest(self, plan: Plan, normal: NormalSpec, base: BaseFacts) -> str:
        """Local files count by content: their path says nothing about them."""
        contents = {item.name: item.identity for item in normal.requirements if item.direct}
        lines = [
            contents[name] if (name := line.partition(" @ ")[0].partition("[")[0]) in contents
            and "sha256:" in contents[name] else line
            for line in plan.lines
        ]  # fmt: skip
        return digest_of(lines, base, self.settings, layered=plan.layered)

    async def _as_last_time(
        self,
        failure: RegistryUnreachable,
        remembered: Remembered | None,
        base: BaseFacts,
        provider: Provider,
        report: Report,
    ) -> Environment:
        """The index is out of reach: what the request meant last time beats an error."""
        found = await provider.existing(remembered.digest, base) if remembered else None
        if found is None:
            raise failure
        report("The package index did not answer: using the versions resolved last time")
        _log.warning("index out of reach; %s is used as resolved before", found.digest)
        return found

    async def _ensure_system(
        self, names: tuple[str, ...], provider: Provider, report: Report
    ) -> None:
        if not names:
            return
        if self._system is None:
            self._system = SystemPackages(
                debs=provider.ground.shared.debs, limit_s=self.settings.build_timeout_s
            )
        await self._system.ensure(names, report)

    # -- what else is asked of environments -----------------------------------------------

    async def explain(self, spec: Spec) -> Explanation:
        """Tell where each package would come from, and why; builds nothing."""
        provider = await self._open()
        normal, base, _ = await self._understand(spec, provider)
        plan = self._from_base(normal, base) or await self._plan(normal, base, provider, _silent)
        if plan.mode == "base" or (plan.mode == "layer" and not plan.lines):
            return Explanation(
                digest=base.fingerprint,
                mode="base",
                reason="the base has all of it",
                decisions=plan.decisions,
                present="base",
            )
        digest = self._digest(plan, normal, base)
        return Explanation(
            digest=digest,
            mode=plan.mode,
            reason=plan.reason,
            decisions=plan.decisions,
            present=await asyncio.to_thread(provider.present, digest),
        )

    async def preloads(self, digest: str) -> tuple[str, ...]:
        """Modules that calls of this environment imported, on any pod."""
        provider = await self._open()
        return await _quietly(lambda: read_preloads(provider.ground.shared, digest), ())

    async def record_preloads(self, digest: str, modules: Iterable[str]) -> None:
        """Note what calls imported, for the next zygote, here or elsewhere."""
        provider = await self._open()
        names = tuple(modules)
        await _quietly(lambda: write_preloads(provider.ground.shared, digest, names), None)

    async def open(self) -> Provider:
        """Open the store now rather than on first use; for commands and start-up."""
        return await self._open()

    async def close(self) -> None:
        """Cancel builds, let go of every environment, stop the heartbeat."""
        await self._flights.close()
        if self._provider is not None:
            await self._provider.close()
        for pulse in self._pulses:
            await asyncio.to_thread(pulse.stop)
        self._pulses.clear()
        self._provider = None

    async def _open(self) -> Provider:
        if self._provider is not None:
            return self._provider
        async with self._opening:
            if self._provider is None:
                self._provider = await self._new_provider()
            return self._provider

    async def _reopen(self) -> Provider:
        """Look again where environments can lie: the volume may be gone, or back.

        Leases already given keep the table they came from, whose pulse goes on.
        """
        async with self._opening:
            self._provider = await self._new_provider()
            return self._provider

    async def _new_provider(self) -> Provider:
        ground: Ground = await asyncio.to_thread(open_ground, self.settings)
        self._pulses.append(Pulse(ground, self.settings.heartbeat_s))
        return Provider(ground, self.settings, ensure_system=self._ensure_tools)

    async def _ensure_tools(self, provider: Provider, report: Report) -> None:
        await self._ensure_system(("build-essential",), provider, report)


def _silent(_line: str) -> None:
    return


def _is_full(error: BaseException) -> bool:
    return isinstance(error, DiskFull) or (isinstance(error, OSError) and error.errno in _FULL)


def _hopeless(error: DiskFull | OSError) -> EnvironmentFailure:
    if isinstance(error, DiskFull) or _is_full(error):
        return DiskFull(
            "There is no space for the environment, also after unused ones were evicted",
            words=getattr(error, "words", str(error)),
            advice="enlarge the volume, or lower FLASHPOOL_ENV_QUOTA_MB so that room is made earlier",
        )
    return StoreUnavailable(
        f"The store of environments cannot be used: {error}",
        advice="look at the volume; set FLASHPOOL_LOCAL_DIR to a directory that works",
    )


async def _quietly(call: Callable[[], T], otherwise: T) -> T:
    """In a thread; a volume that does not answer costs a preload, not a call."""
    try:
        return await asyncio.to_thread(call)
    except OSError as error:
        _log.warning("the shared store: %s", error)
        return otherwise
