"""The facade: specs in, leases out.

    acquire(spec)
      memo hit      two look-ups, one lease          (no disk, no process)
      otherwise     one flight per spec, within the time limit of a build: `acquiring.acquisition`;
                    it ends with its last waiter, or continues (`EnvSettings.builds_go_on`)
      then a lease from the table, for each waiter its own

Blocking work runs in threads, and uv is a child process; the loop never waits. Use an instance on
one event loop only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Final, TypeVar

from .acquiring.acquisition import Acquisition
from .acquiring.environment_choice import EnvironmentChoice, ParsedRequest
from .acquiring.open_store import OpenStore, Pulse
from .acquiring.provider import Provider
from .concurrency.cancellation import wait_for_shielded
from .concurrency.disk_threads import DiskThreads, run_in_thread
from .concurrency.single_flight import Report, SingleFlight
from .errors import BuildTimeout, EnvironmentFailure, StoreUnavailable
from .lease import Environment, Explanation, Lease
from .resolving.memo import Memo
from .resolving.plan import Plan
from .resolving.spec import Spec
from .settings import EnvSettings
from .store.preloads import Preloads, clean_modules, read_preloads, write_preloads

__all__ = ["Environments"]

_log = logging.getLogger(__name__)
_TRIES: Final = 5
#: Most characters of a spec's requirements in the log.
_LABEL: Final = 80

T = TypeVar("T")


class Environments:
    """All environments of one process."""

    def __init__(self, settings: EnvSettings) -> None:
        self.settings = settings
        self._memo = Memo(settings.memo_s)
        self._choice = EnvironmentChoice(settings)
        self._acquisition = Acquisition(settings, self._choice, self._memo)
        self._stores = self._acquisition.stores
        self._single_flight: SingleFlight[Environment] = SingleFlight(
            goes_on=settings.builds_go_on, left=self._acquisition.build_slots.make_way
        )

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
        """Lease the environment for a spec; `deadline` is a time of `time.monotonic()`."""
        if self._stores.overdue:
            await self._stores.renew()
        digest = self._memo.get(spec)
        if digest is not None:
            lease = self._lease(digest)
            if lease is not None:
                return lease
        return await self._acquire_slowly(spec, progress, deadline)

    def _lease(self, digest: str, seen: Environment | None = None) -> Lease | None:
        base = self._acquisition.bases.get(digest)
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
            # Since the flight ended, an eviction may have deleted the environment: then ask again.
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
                self._acquisition.make(spec, report), self.settings.build_timeout_s
            )
        except asyncio.TimeoutError:
            self._stores.build_failed()
            raise BuildTimeout(
                f"The environment was not built within {self.settings.build_timeout_s:g} s",
                advice="raise FLASHPOOL_BUILD_TIMEOUT_S, or build it beforehand",
            ) from None

    # -- further operations ----------------------------------------------------------------

    async def explain(self, spec: Spec) -> Explanation:
        """Explain where each package would come from, and why; build nothing."""
        provider = await self._stores.current()
        with provider.open_store.disk.chosen():
            return await self._explanation(spec, provider)

    async def _explanation(self, spec: Spec, provider: Provider) -> Explanation:
        asked = await self._choice.understand(spec, provider.open_store)
        plan = self._choice.from_base(asked)
        if plan is None:
            asked, plan = await self._explained(asked, provider.open_store)
        digest = self._choice.digest(plan, asked)
        on_base = plan.mode == "base"
        return Explanation(
            digest=digest,
            mode=plan.mode,
            reason=plan.reason,
            decisions=plan.decisions,
            present="base" if on_base else await run_in_thread(provider.present, digest),
        )

    async def _explained(
        self, asked: ParsedRequest, open_store: OpenStore
    ) -> tuple[ParsedRequest, Plan]:
        try:
            named = await self._choice.named(asked, open_store, _silent)
            return named, await self._choice.plan(named, open_store, _silent, thorough=True)
        except EnvironmentFailure as failure:
            raise await self._choice.advised(failure, asked, open_store) from None

    async def preloads(self, digest: str) -> Preloads:
        """Return the modules that calls of this environment imported, on any pod."""
        open_store = (await self._stores.current()).open_store
        return await _quietly(
            open_store.disk, lambda: read_preloads(open_store.shared, digest), Preloads()
        )

    async def record_preloads(
        self, digest: str, modules: Iterable[str], entries: Iterable[str] = ()
    ) -> None:
        """Record what calls imported, for the next zygote, on any pod.

        ``entries``: the packages that the sources of those calls name.
        """
        open_store = (await self._stores.current()).open_store
        noted = Preloads(modules=clean_modules(modules), entries=clean_modules(entries))
        await _quietly(
            open_store.disk, lambda: write_preloads(open_store.shared, digest, noted), None
        )

    def pulses(self) -> list[Pulse]:
        """Return the state of the heartbeats in each open store."""
        return self._stores.pulses()

    async def open(self) -> Provider:
        """Open the store and probe the base now rather than on first use."""
        provider, _ = await asyncio.gather(self._stores.current(), self._choice.look_at_base())
        with provider.open_store.disk.chosen():
            await self._choice.prepare(provider.open_store)
        return provider

    def on_lost(self, tell: Callable[[str], None]) -> None:
        """Set the function that is called, in any thread, when an environment was lost or changed.

        What is found under its digest later is another copy: processes that run in the old copy
        know its directories as they were.
        """
        self._stores.on_lost = tell

    def on_shortage(self, tell: Callable[[str, str], None]) -> None:
        """Set the function that is called when the machine lacks a resource for a build.

        It is called with a name for the build, and the resource; the resource is empty when the
        shortage is over.
        """
        self._acquisition.on_shortage = tell

    async def published(self) -> None:
        """Wait until built environments are available to other pods too."""
        for provider in self._stores:
            await provider.published()

    async def close(self) -> None:
        """Cancel builds, release every lease, stop the heartbeats."""
        await self._stores.close(self._single_flight.close)


def _silent(_line: str) -> None:
    return


def _logging(spec: Spec, report: Report) -> Report:
    """Log each line once, however many callers receive it."""
    label = " ".join((*spec.requirements, *spec.system_packages))[:_LABEL] or "the environment"

    def tell(line: str) -> None:
        _log.info("%s: %s", label, line)
        report(line)

    return tell


async def _quietly(disk: DiskThreads, call: Callable[[], T], otherwise: T) -> T:
    """Run in a thread; if the volume does not answer, return ``otherwise``: calls continue."""
    try:
        return await disk.run(call)
    except OSError as error:
        _log.warning("the shared store: %s", error)
        return otherwise
