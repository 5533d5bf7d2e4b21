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
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import replace
from types import TracebackType
from typing import Final, TypeVar

from .acquiring.environment_choice import EnvironmentChoice, ParsedRequest, base_environment
from .acquiring.open_store import OpenStore
from .acquiring.provider import Provider, Wanted
from .acquiring.store_cache import OpenStores
from .building.system_packages import SystemPackages
from .concurrency.build_slots import BuildSlots
from .concurrency.cancellation import wait_for_shielded
from .concurrency.failure_cache import Failures
from .concurrency.single_flight import Report, SingleFlight
from .errors import (
    BuildTimeout,
    DiskFull,
    EnvironmentFailure,
    RegistryUnreachable,
    StoreUnavailable,
    UvKilled,
    is_full,
)
from .lease import Environment, Explanation, Lease, Seconds
from .resolving.memo import Memo, Remembered
from .resolving.plan import Plan
from .resolving.spec import Spec
from .settings import EnvSettings
from .store.preloads import Preloads, clean_modules, read_preloads, write_preloads

__all__ = ["Environments"]

_log = logging.getLogger(__name__)
_TRIES: Final = 5
#: What of a spec's requirements the log repeats.
_LABEL: Final = 80

T = TypeVar("T")


class Environments:
    """All environments of one process."""

    def __init__(self, settings: EnvSettings) -> None:
        self.settings = settings
        self._memo = Memo(settings.memo_s)
        self._base_environments: dict[str, Environment] = {}
        self._failures = Failures(settings.failure_s)
        self._planner = EnvironmentChoice(settings)
        self._single_flight: SingleFlight[Environment] = SingleFlight()
        self._build_slots = BuildSlots(settings.builds)
        self._stores = OpenStores(settings, self._provider_of)
        self._system: SystemPackages | None = None

    def __repr__(self) -> str:
        return f"<Environments {self._stores}>"

    async def __aenter__(self) -> Environments:  # noqa: PYI034  (Self is not in Python 3.10)
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
        return self._stores.lease(digest, seen)

    async def _acquire_slowly(
        self, spec: Spec, progress: Report | None, deadline: float | None
    ) -> Lease:
        for _ in range(_TRIES):
            seen = await self._single_flight.join(
                spec,
                lambda report: self._limited(spec, _logging(spec, report)),
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
            return await wait_for_shielded(
                self._recovering(spec, report), self.settings.build_timeout_s
            )
        except asyncio.TimeoutError:
            raise BuildTimeout(
                f"The environment was not built within {self.settings.build_timeout_s:g} s",
                advice="raise FLASHPOOL_BUILD_TIMEOUT_S, or build it beforehand",
            ) from None

    async def _recovering(self, spec: Spec, report: Report) -> Environment:
        """Once more after uv was killed, a full disk (with room made) or a store that went away.

        A volume that stays full is not the end, where local disk is another one.
        """
        try:
            provider = await self._stores.current()
            try:
                return await self._prepare(spec, provider, report)
            except (UvKilled, DiskFull, OSError) as error:
                _log.warning("second try for an environment: %s", error)
                provider = await self._second(error, provider, report)
            try:
                return await self._prepare(spec, provider, report)
            except (DiskFull, OSError) as error:
                beside = await self._stores.beside(provider) if is_full(error) else None
                if beside is None:
                    raise
                report("The volume is full: building on local disk")
                _log.warning("%s is full: local disk has to do", provider.open_store.store)
            return await self._prepare(spec, beside, report)
        except (DiskFull, OSError) as error:
            raise _hopeless(error) from error

    async def _second(self, error: Exception, provider: Provider, report: Report) -> Provider:
        if isinstance(error, UvKilled):
            # All of it: the virtualenv that uv was filling may look complete to the next one.
            report("uv was killed: trying once more")
            return provider
        if is_full(error):
            report("No space left: evicting environments")
            await provider.evict_unused()
            return provider
        report(f"Store: {error}")
        return await self._stores.reopen()

    # -- from spec to environment ---------------------------------------------------------

    async def _prepare(self, spec: Spec, provider: Provider, report: Report) -> Environment:
        asked = await self._planner.understand(spec, provider.open_store)
        self._recall(asked)
        try:
            return await self._found_or_made(spec, asked, provider, report)
        except EnvironmentFailure as failure:
            self._failures.remember(asked.failure_key, failure)
            if isinstance(failure, RegistryUnreachable):
                # uv's words may be about a package that nobody here has heard of.
                raise failure.of(asked.spec.lines) from None
            raise

    def _recall(self, asked: ParsedRequest) -> None:
        if asked.refresh:
            self._failures.forget(asked.failure_key)
            return
        failure = self._failures.recall(asked.failure_key)
        if failure is not None:
            raise failure

    async def _found_or_made(
        self, spec: Spec, asked: ParsedRequest, provider: Provider, report: Report
    ) -> Environment:
        await self._ensure_system(asked.spec.system_packages, provider, report)
        if self._planner.from_base(asked) is not None:
            return self._base_environment(spec, asked)
        remembered = await provider.remembered(asked.key)
        if remembered is not None and remembered.fresh and not spec.refresh:
            found = await provider.existing(remembered.digest, asked.base, report)
            if found is not None:
                self._memo.put(spec, found.digest, age_s=remembered.age_s)
                return found
        try:
            there = remembered is not None and await provider.is_there(remembered.digest)
            return await self._resolved(spec, asked, provider, report, begin=not there)
        except RegistryUnreachable as failure:
            return await self._as_last_time(failure, remembered, asked, provider, report)

    def _base_environment(self, spec: Spec, asked: ParsedRequest) -> Environment:
        environment = base_environment(asked.base)
        self._base_environments[environment.digest] = environment
        self._memo.put(replace(spec, refresh=False), environment.digest)
        return environment

    async def _resolved(
        self, spec: Spec, asked: ParsedRequest, provider: Provider, report: Report, *, begin: bool
    ) -> Environment:
        """Ask the index; `begin` meanwhile, where it is likely that something is to be built."""
        async with AsyncExitStack() as until_built:
            async with self._build_slots.place(report):
                began = time.monotonic()
                report("Resolving versions")
                guess = self._planner.guess(asked, provider.open_store) if begin else None
                drafting = provider.open_store.speculative.begun(guess, asked.base, asked.key)
                draft = await until_built.enter_async_context(drafting)
                # Some packages have to be compiled before they tell what they depend on.
                plan = await provider.with_tools(
                    lambda: self._planner.plan(asked, provider.open_store, report), report
                )
            seconds = Seconds(resolve=time.monotonic() - began)
            if plan.mode == "base":
                return self._base_environment(spec, asked)
            digest = self._planner.digest(plan, asked)
            report(_told_of(plan))
            wanted = Wanted(
                digest=digest,
                key=asked.key,
                plan=plan,
                base=asked.base,
                spec=asked.spec,
                draft=draft,
            )
            found = await provider.provide(wanted, seconds, report)
        await provider.remember(asked.key, digest, asked.spec.lines)
        self._memo.put(replace(spec, refresh=False), digest)
        return found

    async def _as_last_time(
        self,
        failure: RegistryUnreachable,
        remembered: Remembered | None,
        asked: ParsedRequest,
        provider: Provider,
        report: Report,
    ) -> Environment:
        """The index is out of reach: what the request meant last time beats an error."""
        found = (
            await provider.existing(remembered.digest, asked.base, report) if remembered else None
        )
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
                debs=provider.open_store.shared.debs, limit_s=self.settings.build_timeout_s
            )
        await self._system.ensure(names, report)

    # -- what else is asked of environments -----------------------------------------------

    async def explain(self, spec: Spec) -> Explanation:
        """Tell where each package would come from, and why; builds nothing."""
        provider = await self._stores.current()
        asked = await self._planner.understand(spec, provider.open_store)
        plan = self._planner.from_base(asked)
        if plan is None:
            plan = await self._planner.plan(asked, provider.open_store, _silent, thorough=True)
        digest = self._planner.digest(plan, asked)
        on_base = plan.mode == "base"
        return Explanation(
            digest=digest,
            mode=plan.mode,
            reason=plan.reason,
            decisions=plan.decisions,
            present="base" if on_base else await asyncio.to_thread(provider.present, digest),
        )

    async def preloads(self, digest: str) -> Preloads:
        """Modules that calls of this environment imported, on any pod."""
        provider = await self._stores.current()
        return await _quietly(lambda: read_preloads(provider.open_store.shared, digest), Preloads())

    async def record_preloads(
        self, digest: str, modules: Iterable[str], entries: Iterable[str] = ()
    ) -> None:
        """Note what calls imported, for the next zygote, here or elsewhere.

        ``entries``: the packages that the sources of those calls name.
        """
        provider = await self._stores.current()
        noted = Preloads(modules=clean_modules(modules), entries=clean_modules(entries))
        await _quietly(lambda: write_preloads(provider.open_store.shared, digest, noted), None)

    async def open(self) -> Provider:
        """Open the store and look at the base now rather than on first use."""
        provider, _ = await asyncio.gather(self._stores.current(), self._planner.look_at_base())
        await self._planner.prepare(provider.open_store)
        return provider

    async def close(self) -> None:
        """Cancel builds, let go of every environment, stop the heartbeat."""
        await self._single_flight.close()
        await self._stores.close()

    def _provider_of(self, open_store: OpenStore) -> Provider:
        return Provider(
            open_store,
            self.settings,
            build_slots=self._build_slots,
            ensure_system=self._ensure_tools,
        )

    async def _ensure_tools(self, provider: Provider, report: Report) -> None:
        await self._ensure_system(("build-essential",), provider, report)


def _silent(_line: str) -> None:
    return


def _told_of(plan: Plan) -> str:
    number = len(plan.lines)
    packages = "1 package" if number == 1 else f"{number} packages"
    where = "on top of the base" if plan.layered else "apart from the base"
    return f"Resolved: {packages} to install, {where}{plan.reason and f': {plan.reason}'}"


def _logging(spec: Spec, report: Report) -> Report:
    """Log each line once, however many callers hear it."""
    label = " ".join((*spec.requirements, *spec.system_packages))[:_LABEL] or "the environment"

    def tell(line: str) -> None:
        _log.info("%s: %s", label, line)
        report(line)

    return tell


def _hopeless(error: DiskFull | OSError) -> EnvironmentFailure:
    if is_full(error):
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
