"""From a raw spec to a plan and its digest: everything before anything is built.

understand   Spec -> NormalSpec + base facts + request key
named        adds the names of repositories, archives and directories given without a name
from_base    the base itself, if it has everything requested
plan         resolver.py, in a scratch directory
digest       of the plan; local files count by content
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from flashpool.envs.concurrency.disk_threads import run_in_thread
from flashpool.envs.concurrency.failure_cache import Failures
from flashpool.envs.concurrency.single_flight import Report
from flashpool.envs.errors import EnvironmentFailure, InterpreterMissing
from flashpool.envs.lease import Environment
from flashpool.envs.resolving.advice import on_python, wants_other_python, with_advice
from flashpool.envs.resolving.base_interpreter import BaseFacts, BasePackage, Bases
from flashpool.envs.resolving.digest import digest_of, request_key
from flashpool.envs.resolving.interpreters import find_interpreter, is_version
from flashpool.envs.resolving.plan import Guess, Plan, from_base
from flashpool.envs.resolving.resolver import Question, Resolver
from flashpool.envs.resolving.spec import PYTHONS, NormalSpec, Spec, normalise
from flashpool.envs.settings import EnvSettings
from flashpool.envs.store.scratch import scratch

from .open_store import OpenStore

__all__ = ["EnvironmentChoice", "ParsedRequest", "base_environment"]

_log = logging.getLogger(__name__)

#: Seconds to look for a Python on which a failed request would work.
_ADVICE_LIMIT_S: Final = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedRequest:
    """A parsed spec, and the base that it is for."""

    spec: NormalSpec
    base: BaseFacts
    key: str
    refresh: bool

    @property
    def failure_key(self) -> str:
        """The key under which a failure is remembered.

        It includes the system packages, which `key` lacks.
        """
        return " ".join((self.key, *self.spec.system_packages))


class EnvironmentChoice:
    """Parses specs, and remembers interpreters."""

    def __init__(self, settings: EnvSettings) -> None:
        self._settings = settings
        self._bases = Bases()
        self._pythons: dict[str, Path] = {}
        self._missing = Failures(settings.failure_s)

    async def look_at_base(self) -> BaseFacts:
        """Probe the base now, so that no request has to wait for that."""
        return await self._bases.facts(self._settings.base_python)

    async def prepare(self, open_store: OpenStore) -> None:
        """Do what does not depend on a request, so that the first request waits less."""
        base = await self.look_at_base()
        open_store.spare_virtualenvs.prepare(base)
        try:
            await self._resolver(open_store).prepare(base)
        except OSError as error:
            _log.info("no stubs of the base beforehand: %s", error)

    def _resolver(self, open_store: OpenStore) -> Resolver:
        return Resolver(uv=open_store.uv, stubs=open_store.stubs, pins=self._settings.runtime_pins)

    async def understand(self, spec: Spec, open_store: OpenStore) -> ParsedRequest:
        """Normalise, find the interpreter, compute the request key."""
        settings = self._settings
        normal = await run_in_thread(normalise, spec, references=settings.references)
        if spec.refresh and normal.python_version:
            self._missing.forget(normal.python_version)
        base = await self._base(normal, open_store)
        key = request_key(normal, base, settings)
        if normal.brought:
            base = base.beside(
                BasePackage(name=one.name, version=one.version) for one in normal.brought
            )
        return ParsedRequest(spec=normal, base=base, key=key, refresh=spec.refresh)

    async def _base(self, normal: NormalSpec, open_store: OpenStore) -> BaseFacts:
        base = await self._bases.facts(self._settings.base_python)
        version = normal.python_version
        if version is None or is_version(base, version):
            return base
        if version not in self._pythons:
            try:
                self._pythons[version] = await self._found(version, open_store)
            except InterpreterMissing as failure:
                words = f"{failure.words}\nthe base is Python {base.version}".lstrip()
                raise failure.but(words=words) from None
        # The packages of another interpreter belong to the machine, not to the image.
        return (await self._bases.facts(self._pythons[version])).bare()

    async def _found(self, version: str, open_store: OpenStore) -> Path:
        known = self._missing.recall(version)
        if known is not None:
            raise known
        try:
            facts = await find_interpreter(
                version, self._bases, open_store.uv, open_store.store.root
            )
        except EnvironmentFailure as failure:
            self._missing.remember(version, failure)
            raise
        return facts.python

    def from_base(self, asked: ParsedRequest) -> Plan | None:
        """Return the plan that builds nothing if the base has everything; otherwise None."""
        plan = from_base(asked.spec, asked.base)
        own = asked.base.python == self._settings.base_python
        if plan is None or (own and not asked.spec.requirements):
            return plan
        # A base without cloudpickle or tblib gets a layer that has them. So does another Python,
        # which may have other versions of them, or different packages of these names.
        pins = {pin.partition("==")[0] for pin in self._settings.runtime_pins}
        return plan if pins <= {*asked.base.packages, *asked.base.brought} else None

    async def named(
        self, asked: ParsedRequest, open_store: OpenStore, report: Report
    ) -> ParsedRequest:
        """Return the request with a name on every requirement.

        Its key stays that of the original text.
        """
        if not asked.spec.nameless:
            return asked
        async with self._asking(asked, open_store, report) as question:
            return replace(asked, spec=await self._resolver(open_store).named(question))

    @asynccontextmanager
    async def _asking(
        self, asked: ParsedRequest, open_store: OpenStore, report: Report
    ) -> AsyncIterator[Question]:
        async with scratch(open_store.store, open_store.holders.me) as folder:
            yield Question(
                spec=asked.spec,
                base=asked.base,
                folder=folder,
                refresh=asked.refresh,
                progress=report,
            )

    async def plan(
        self, asked: ParsedRequest, open_store: OpenStore, report: Report, *, thorough: bool = False
    ) -> Plan:
        """Resolve; raise the typed failure if nothing satisfies the requirements."""
        async with self._asking(asked, open_store, report) as question:
            plan = await self._resolver(open_store).plan(replace(question, thorough=thorough))
        if plan.mode == "layer" and not plan.lines:
            return Plan(mode="base", lines=(), decisions=plan.decisions, reason=plan.reason)
        return plan

    async def advised(
        self, failure: EnvironmentFailure, asked: ParsedRequest, open_store: OpenStore
    ) -> EnvironmentFailure:
        """Return the failure with advice that fits the request."""
        better = with_advice(failure, asked.spec)
        package = wants_other_python(failure) if better is failure else None
        if package is None:
            return better
        try:
            return await asyncio.wait_for(
                self._on_other_python(failure, package, asked, open_store), _ADVICE_LIMIT_S
            )
        except (EnvironmentFailure, OSError, asyncio.TimeoutError) as error:
            _log.debug("no advice for %s: %s", failure.requirement, error)
            return failure

    async def _on_other_python(
        self, failure: EnvironmentFailure, package: str, asked: ParsedRequest, open_store: OpenStore
    ) -> EnvironmentFailure:
        """Look for a Python on which the request resolves, preferring installed ones."""
        now = ".".join(asked.base.version.split(".")[:2])
        absent = ""
        async with self._asking(asked, open_store, _silent) as question:
            for version in sorted(PYTHONS, key=lambda each: _apart(each, now)):
                if not await self._resolver(open_store).resolves(question, version, package):
                    continue
                if await self._is_installed(version, open_store):
                    return on_python(failure, version, now=now, installed=True)
                absent = absent or version
        return on_python(failure, absent, now=now, installed=False) if absent else failure

    async def _is_installed(self, version: str, open_store: OpenStore) -> bool:
        if version in self._pythons or self._settings.allow_python_downloads:
            return True
        try:
            self._pythons[version] = await self._found(version, open_store)
        except EnvironmentFailure:
            return False
        return True

    def guess(self, asked: ParsedRequest, open_store: OpenStore) -> Guess | None:
        """Return what the plan will probably be, judged by uv's cache; None: no guess."""
        if asked.refresh:
            return None
        return self._resolver(open_store).guess(asked.spec, asked.base)

    def digest(self, plan: Plan, asked: ParsedRequest) -> str:
        """Return the key of the environment that a plan makes."""
        if plan.mode == "base":
            return asked.base.fingerprint
        contents = {
            item.name: item.identity
            for item in asked.spec.requirements
            if item.direct and "@ sha256:" in item.identity
        }
        lines = [contents.get(_name_of(line), line) for line in plan.lines]
        return digest_of(lines, asked.base, self._settings, layered=plan.layered)


def _silent(_line: str) -> None:
    return


def _apart(version: str, now: str) -> tuple[int, int]:
    """Return the distance between two releases of Python 3; on a tie the newer one comes first."""
    minor, current = int(version.split(".")[1]), int(now.split(".")[1])
    return (abs(minor - current), -minor)


def _name_of(line: str) -> str:
    return line.partition(" @ ")[0].partition("[")[0]


def base_environment(base: BaseFacts) -> Environment:
    """Return the base itself as an environment."""
    return Environment(
        digest=base.fingerprint,
        python=base.python,
        root=None,
        site_dirs=base.site_dirs,
        mode="base",
        origin="base",
    )
