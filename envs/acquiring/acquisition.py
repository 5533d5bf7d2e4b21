"""From a spec to a ready environment: found or built, with retries where they help.

    make          on the current store; again if uv was killed, the disk is full or the volume gone
      _prepare      parse the request; repeat a remembered failure, or remember a new one
        _found_or_made
          satisfied by the base? -> the base
          remembered on the volume, and present? -> that environment
          _resolved    resolve -> digest -> `Provider.provide` (on disk? archive? build)

Results go to the memo that `Environments` asks first. Runs on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Final

from flashpool.envs.building.system_packages import SystemPackages
from flashpool.envs.concurrency.build_slots import BuildSlots
from flashpool.envs.concurrency.failure_cache import Failures
from flashpool.envs.concurrency.single_flight import Report
from flashpool.envs.errors import (
    DiskFull,
    EnvironmentFailure,
    RegistryUnreachable,
    StoreUnavailable,
    UvKilled,
    is_full,
    short_of,
)
from flashpool.envs.lease import Environment, Seconds
from flashpool.envs.resolving.advice import named_after_modules
from flashpool.envs.resolving.memo import Memo, Remembered
from flashpool.envs.resolving.plan import Plan
from flashpool.envs.resolving.spec import Spec
from flashpool.envs.settings import EnvSettings
from flashpool.envs.uv_words import scrubbed

from .environment_choice import EnvironmentChoice, ParsedRequest, base_environment
from .open_store import OpenStore
from .provider import Provider, Wanted
from .store_cache import OpenStores

__all__ = ["Acquisition"]

_log = logging.getLogger(__name__)

#: Seconds before a build is tried again that failed for lack of processes or descriptors.
_SHORT_PAUSE_S = 1.0
#: Most characters of the name under which a shortage is reported.
_LABEL: Final = 80


class Acquisition:
    """Finds or builds the environments of specs."""

    def __init__(self, settings: EnvSettings, choice: EnvironmentChoice, memo: Memo) -> None:
        self._settings = settings
        self._choice = choice
        self._memo = memo
        self._failures = Failures(settings.failure_s)
        self.build_slots = BuildSlots(settings.builds)
        #: Called with the build and the resource that the machine lacks for it; an empty text ends
        #: the shortage.
        self.on_shortage: Callable[[str, str], None] = lambda _who, _what: None
        self._system: SystemPackages | None = None
        self.stores = OpenStores(settings, self._provider_of)
        #: Bases that satisfy a request, by digest: a lease on a base holds no files.
        self.bases: dict[str, Environment] = {}

    def _provider_of(self, open_store: OpenStore) -> Provider:
        return Provider(
            open_store,
            self._settings,
            build_slots=self.build_slots,
            ensure_system=self._ensure_tools,
        )

    async def make(self, spec: Spec, report: Report) -> Environment:
        """Find or build the environment of a spec; wait while the machine lacks a resource."""
        who, what = f"the build of {scrubbed(' '.join(spec.requirements))[:_LABEL]}", ""
        try:
            while True:
                try:
                    return await self._make(spec, report)
                except (OSError, RuntimeError, EnvironmentFailure) as error:
                    if not (now_short := short_of(error)):
                        raise
                if now_short != what:
                    report(f"Waiting: the server is {now_short}")
                what = now_short
                self.on_shortage(who, what.removeprefix("short of "))
                await asyncio.sleep(_SHORT_PAUSE_S)
        finally:
            if what:
                self.on_shortage(who, "")

    async def _make(self, spec: Spec, report: Report) -> Environment:
        """Find or build the environment, with a second attempt if that may help.

        It is made after uv was killed, the disk was full (unused environments are evicted first) or
        the store disappeared. If a volume stays full, local disk is used if it is another disk.
        """
        try:
            provider = await self.stores.current()
            try:
                return await self._prepare(spec, provider, report)
            except (UvKilled, DiskFull, OSError) as error:
                if short_of(error):
                    raise
                _log.warning("second attempt to find or build an environment: %s", error)
                provider = await self._before_second_try(error, provider, report)
            try:
                return await self._prepare(spec, provider, report)
            except (DiskFull, OSError) as error:
                beside = await self.stores.beside(provider) if is_full(error) else None
                if beside is None:
                    raise
                report("The volume is full: building on local disk")
                _log.warning("%s is full: using local disk instead", provider.open_store.store)
            return await self._prepare(spec, beside, report)
        except (DiskFull, OSError) as error:
            if short_of(error):
                raise
            raise _store_failure(error) from error

    async def _before_second_try(
        self, error: Exception, provider: Provider, report: Report
    ) -> Provider:
        if isinstance(error, UvKilled):
            # Discard everything: the virtualenv that uv was filling may look complete to a second
            # uv.
            report("uv was killed: retrying once")
            return provider
        if is_full(error):
            report("No space left: evicting environments")
            with provider.open_store.disk.chosen():
                await provider.evict_unused()
            return provider
        report(f"Store: {error}")
        return await self.stores.reopen()

    async def _prepare(self, spec: Spec, provider: Provider, report: Report) -> Environment:
        with provider.open_store.disk.chosen():
            return await self._prepared(spec, provider, report)

    async def _prepared(self, spec: Spec, provider: Provider, report: Report) -> Environment:
        asked = await self._choice.understand(spec, provider.open_store)
        self._recall(asked)
        try:
            return await self._found_or_made(spec, asked, provider, report)
        except EnvironmentFailure as plain:
            if not short_of(plain):
                provider.open_store.counts.add("failed")
            failure = await self._choice.advised(plain, asked, provider.open_store)
            self._failures.remember(asked.failure_key, failure)
            if isinstance(failure, RegistryUnreachable):
                # uv's message may name a package that is not part of the request.
                raise failure.of(map(scrubbed, asked.spec.lines)) from None
            raise failure from None

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
        if self._choice.from_base(asked) is not None:
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
        self.bases[environment.digest] = environment
        self._memo.put(replace(spec, refresh=False), environment.digest)
        return environment

    async def _resolved(
        self, spec: Spec, asked: ParsedRequest, provider: Provider, report: Report, *, begin: bool
    ) -> Environment:
        """Resolve with the index; meanwhile begin a build if it will probably be needed."""
        async with AsyncExitStack() as until_built:
            async with self.build_slots.place(report):
                began = time.monotonic()
                report("Resolving versions")
                guess = self._choice.guess(asked, provider.open_store) if begin else None
                drafting = provider.open_store.speculative.begun(guess, asked.base, asked.key)
                draft = await until_built.enter_async_context(drafting)
                # Some packages must be compiled before their dependencies are known.
                asked, plan = await provider.with_tools(
                    lambda: self._planned(asked, provider, report), report
                )
            seconds = Seconds(resolve=time.monotonic() - began)
            if plan.mode == "base":
                return self._base_environment(spec, asked)
            digest = self._choice.digest(plan, asked)
            report(_resolved_line(plan))
            for line in named_after_modules(asked.spec):
                report(line)
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

    async def _planned(
        self, asked: ParsedRequest, provider: Provider, report: Report
    ) -> tuple[ParsedRequest, Plan]:
        named = await self._choice.named(asked, provider.open_store, report)
        return named, await self._choice.plan(named, provider.open_store, report)

    async def _as_last_time(
        self,
        failure: RegistryUnreachable,
        remembered: Remembered | None,
        asked: ParsedRequest,
        provider: Provider,
        report: Report,
    ) -> Environment:
        """Return the environment of the last resolution, because the index is unreachable."""
        found = (
            await provider.existing(remembered.digest, asked.base, report) if remembered else None
        )
        if found is None:
            raise failure
        report("The package index did not answer: using the versions resolved last time")
        _log.warning(
            "the package index is unreachable; reusing the earlier resolution %s", found.digest
        )
        return found

    async def _ensure_system(
        self, names: tuple[str, ...], provider: Provider, report: Report
    ) -> None:
        if not names:
            return
        if self._system is None:
            self._system = SystemPackages(
                debs=provider.open_store.shared.debs, limit_s=self._settings.build_timeout_s
            )
        await self._system.ensure(names, report)

    async def _ensure_tools(self, provider: Provider, report: Report) -> None:
        await self._ensure_system(("build-essential",), provider, report)


def _resolved_line(plan: Plan) -> str:
    number = len(plan.lines)
    packages = "1 package" if number == 1 else f"{number} packages"
    where = "on top of the base" if plan.layered else "apart from the base"
    return f"Resolved: {packages} to install, {where}{plan.reason and f': {plan.reason}'}"


def _store_failure(error: DiskFull | OSError) -> EnvironmentFailure:
    if is_full(error):
        return DiskFull(
            "There is no space for the environment, even after unused environments were evicted",
            words=getattr(error, "words", str(error)),
            advice="enlarge the volume, or lower FLASHPOOL_ENV_QUOTA_MB so that room is made earlier",
        )
    return StoreUnavailable(
        f"The store of environments cannot be used: {error}",
        advice="look at the volume; set FLASHPOOL_LOCAL_DIR to a directory that works",
    )
