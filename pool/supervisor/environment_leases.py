"""From the packages that a call names to an environment that the pool knows by name.

    resolve(spec) -> the store's lease -> EnvironmentRegistry.add -> Provision
                           held here, one per environment ...
    on_unused(name)        ... until it has no process and no call left
    lost(digest)           the store reports that a copy was moved or replaced: processes in the
                           old copy finish, and new calls get a new name and new processes
    on_learned(...)        recorded in the store; preloaded next time, by other pods too

Calls without packages never come here; the first call with packages opens the store. Errors of the
store become errors of the pool, with the store's message.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from flashpool import envs
from flashpool.envs import Environment, EnvironmentFailure, EnvSettings, Lease, Spec, operations
from flashpool.envs.acquiring.provider import Provider
from flashpool.pool.apps import App
from flashpool.pool.calls import COPY, Phase, Provision
from flashpool.pool.errors import (
    EnvironmentError,
    FlashpoolError,
    InvalidRequest,
    PoolClosed,
    Timeout,
)
from flashpool.pool.stats import StoreStats

from .environment_registry import EnvironmentRegistry

_log = logging.getLogger(__name__)

Report = Callable[[str], None]


class EnvironmentLeases(Protocol):
    """Finds or builds the environment of a spec."""

    async def resolve(self, spec: Spec, report: Report) -> Provision:
        """Return the environment, known to the pool; ``report`` receives progress lines.

        The call must be submitted in the same turn of the loop.

        Raises:
            InvalidRequest: the spec is not valid.
            EnvironmentError, Timeout: the environment cannot be provided.
        """

    async def build_ahead(self, spec: Spec, report: Report) -> Provision:
        """Build the environment for later calls; raises like `resolve`."""

    async def explain(self, spec: Spec) -> Mapping[str, Any]:
        """Explain what building would install, package by package; raises like `resolve`."""

    async def listing(self) -> Mapping[str, Any]:
        """List the store's environments; raises like `resolve`."""

    async def lock_of(self, digest: str) -> tuple[str, ...]:
        """Return the exact versions in an environment; empty if it is gone."""

    async def open_app(self, app: App, report: Report) -> str:
        """Return the name of an environment for this app's workers only; raises like `resolve`."""

    def is_lost(self, name: str) -> bool:
        """Return whether no new process may start in this copy."""

    def stores(self) -> list[StoreStats]:
        """Return the state of each open store."""

    async def published(self) -> None:
        """Wait until environments built here are available to other machines too."""

    async def close(self) -> None:
        """Release everything; the pool has stopped."""


class StoredEnvironments:
    """Environments of the store, for one pool on one machine."""

    def __init__(self, settings: EnvSettings, registry: EnvironmentRegistry) -> None:
        self._store = envs.Environments(settings)
        self._base_python = settings.base_python
        self._limit_s = settings.build_timeout_s
        self._registry = registry
        #: One lease for each environment that the pool knows, by its name in the pool.
        self._held: dict[str, Lease] = {}
        #: Names that new calls use for second and later copies, by digest; and the number of the
        #: next copy.
        self._names: dict[str, str] = {}
        self._copies = itertools.count(2)
        #: Names of lost copies, which get no new calls.
        self._lost: set[str] = set()
        self._provider: Provider | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        #: Environments in use that the store wants to delete.
        self._unwanted: set[str] = set()
        self._closing = False
        self._tasks: set[asyncio.Task[Any]] = set()
        registry.on_unused = self._unused
        registry.on_learned = self._learned
        self._store.on_lost(self._found_lost)
        self._store.on_shortage(registry.short)

    async def resolve(self, spec: Spec, report: Report) -> Provision:
        """Return the environment, held until the pool no longer needs it."""
        self._loop = asyncio.get_running_loop()
        with self._in_the_pools_words():
            return await self._leased(await self._store.acquire(spec, progress=report))

    async def build_ahead(self, spec: Spec, report: Report) -> Provision:
        """Build or find the environment, and leave it in the store."""
        self._loop = asyncio.get_running_loop()
        with self._in_the_pools_words():
            lease = await self._store.acquire(spec, progress=report)
        lease.release()
        return _provision(lease.environment, lease.environment.digest)

    async def explain(self, spec: Spec) -> Mapping[str, Any]:
        """Explain what the store would do."""
        with self._in_the_pools_words():
            return asdict(await self._store.explain(spec))

    async def listing(self) -> Mapping[str, Any]:
        """List the store's environments; packages by name."""
        with self._in_the_pools_words():
            return asdict(await operations.listing(self._store))

    async def lock_of(self, digest: str) -> tuple[str, ...]:
        """Return the locked packages from the environment's facts."""
        try:
            return (await operations.show(self._store, digest)).facts.lock
        except EnvironmentFailure as failure:
            _log.warning("The versions in environment %s are not known: %s", digest, failure)
            return ()

    @contextlib.contextmanager
    def _in_the_pools_words(self) -> Iterator[None]:
        try:
            yield
        except EnvironmentFailure as failure:
            # The message says everything; a traceback through flashpool would hide it.
            raise self._error(failure) from None

    async def _leased(self, lease: Lease) -> Provision:
        environment = lease.environment
        if environment.root is None and environment.python == Path(self._base_python):
            lease.release()
            return Provision()
        digest = environment.digest
        if self._is_held(digest, environment.python):
            lease.release()
        else:
            await self._introduce(digest, lease)
        return _provision(environment, self._name(digest))

    async def open_app(self, app: App, report: Report) -> str:
        """Give an app's workers a name of their own for the environment that the app asks for."""
        assert app.spec is not None
        self._loop = asyncio.get_running_loop()
        try:
            lease = await self._store.acquire(app.spec, progress=report)
        except EnvironmentFailure as failure:
            raise self._error(failure) from None
        with contextlib.ExitStack() as unless_kept:
            unless_kept.callback(lease.release)
            if lease.environment.root is not None:
                await self._watch_pressure()
            if self._closing:
                raise PoolClosed("the pool is shut down")
            unless_kept.pop_all()
        name = f"{lease.environment.digest}{COPY}{next(self._copies)}"
        self._held[name] = lease
        self._registry.add_app(name, str(lease.environment.python), app)
        return name

    def is_lost(self, name: str) -> bool:
        """Return whether no new process may start in this copy."""
        return name in self._lost

    def _name(self, digest: str) -> str:
        """Return the pool's name of the copy in which new calls run."""
        return self._names.get(digest, digest)

    async def _introduce(self, digest: str, lease: Lease) -> None:
        """Add the environment to the pool, with what its calls imported earlier or elsewhere."""
        with contextlib.ExitStack() as unless_kept:
            # This also runs if the caller is cancelled meanwhile.
            unless_kept.callback(lease.release)
            learned = await self._store.preloads(digest)
            await self._watch_pressure()
            if self._is_held(digest, lease.environment.python) or self._closing:
                return  # another request was faster
            unless_kept.pop_all()
        before = self._name(digest)
        if before in self._held:
            # That copy is lost, or elsewhere: its volume disappeared, and the environment was built
            # again on local disk. Processes in the old copy finish; they do not see modules of the
            # new copy.
            self._names[digest] = f"{digest}{COPY}{next(self._copies)}"
            self._registry.supersede(before)
        name = self._name(digest)
        self._held[name] = lease
        python = str(lease.environment.python)
        self._registry.add(name, python, learned.modules, learned.entries)

    def _is_held(self, digest: str, python: Path) -> bool:
        name = self._name(digest)
        held = self._held.get(name)
        return held is not None and held.environment.python == python and name not in self._lost

    def _error(self, failure: EnvironmentFailure) -> FlashpoolError:
        if isinstance(failure, envs.BuildTimeout):
            return Timeout(str(failure), phase=Phase.BUILD.value, limit_s=self._limit_s)
        if isinstance(failure, envs.SpecRefused):
            return InvalidRequest(str(failure), requirement=failure.requirement)
        return EnvironmentError(
            str(failure),
            kind=type(failure).__name__,
            phase=failure.phase,
            requirement=failure.requirement,
            advice=failure.advice,
            retryable=failure.retryable,
        )

    def stores(self) -> list[StoreStats]:
        """Return the state of each open store."""
        return [
            StoreStats(
                root=pulse.root,
                heartbeat_age_s=round(pulse.age_s, 3),
                failures=pulse.failures,
                problem=pulse.problem or None,
                environments=pulse.tally.environments,
                bytes=pulse.tally.bytes,
                builds=pulse.tally.builds,
                failed_builds=pulse.tally.failed_builds,
                evictions=pulse.tally.evictions,
            )
            for pulse in self._store.pulses()
        ]

    # Events of the pool.

    def _unused(self, name: str) -> None:
        lease = self._held.pop(name, None)
        if lease is not None:
            lease.release()
        digest = _digest(name)
        self._lost.discard(name)
        if self._names.get(digest) == name:
            del self._names[digest]
        if digest in self._unwanted and self._provider is not None:
            self._begin(self._provider.make_room(reserve=False))
        self._unwanted.discard(digest)

    def _learned(self, name: str, modules: tuple[str, ...], entries: tuple[str, ...]) -> None:
        if not self._closing:
            self._begin(self._store.record_preloads(_digest(name), modules, entries))

    def _begin(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("The store of environments: %s", error)

    # Events of the store.

    async def _watch_pressure(self) -> None:
        provider = await self._store.open()
        if provider is not self._provider:
            self._provider = provider
            provider.on_pressure(self._pressed)

    def _pressed(self, digests: tuple[str, ...]) -> list[str]:
        """Stop idle environments that would be deleted for room if they were not in use."""
        copies: dict[str, list[str]] = {}
        for name in self._held:
            if (digest := _digest(name)) in digests:
                copies.setdefault(digest, []).append(name)
        self._unwanted |= copies.keys()
        # Each copy is asked, even if one of them is in use.
        idle = {
            name: self._registry.retire_idle(name) for names in copies.values() for name in names
        }
        return [digest for digest, names in copies.items() if all(map(idle.get, names))]

    def _found_lost(self, digest: str) -> None:
        """Handle a lost environment; called on a thread of the store."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._lose, digest)

    def _lose(self, digest: str) -> None:
        held = [name for name in self._held if _digest(name) == digest and name not in self._lost]
        for name in held if not self._closing else ():
            _log.warning(
                "environment %s was moved or deleted: its processes accept no new calls", name
            )
            self._lost.add(name)
            self._registry.supersede(name)

    async def published(self) -> None:
        """Wait until archives that are being written are published."""
        await self._store.published()

    async def close(self) -> None:
        """Cancel builds, and release all leases."""
        self._closing = True
        for task in list(self._tasks):
            task.cancel()
        held, self._held = self._held, {}
        for lease in held.values():
            lease.release()
        await self._store.close()


def _provision(environment: Environment, name: str) -> Provision:
    seconds = environment.seconds
    return Provision(
        environment=name,
        origin=environment.origin,
        resolve_s=seconds.resolve,
        fetch_s=seconds.fetch,
        build_s=seconds.build,
    )


def _digest(name: str) -> str:
    return name.partition(COPY)[0]
