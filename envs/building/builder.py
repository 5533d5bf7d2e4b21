"""Builds an environment in scratch, completes it, and publishes it by one rename.

    virtualenv -> uv pip install --no-deps (the plan's lines) -> .pth to the base, list of
      files (or all of that from a draft) -> check merged metadata -> facts -> rename

A process that is killed between two of these steps leaves only a scratch directory with its name.
Bytecode and the seal follow after publication, so that the first call need not wait for them. With
a volume key, and when a damaged environment is replaced, they come before publication, because
nothing unsealed may be used then.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from flashpool.envs.concurrency.cancellation import run_in_thread_shielded
from flashpool.envs.errors import VerificationFailed
from flashpool.envs.lease import Seconds
from flashpool.envs.resolving.base_interpreter import BaseFacts
from flashpool.envs.resolving.plan import Plan, local_names
from flashpool.envs.settings import EnvSettings
from flashpool.envs.store import manifest
from flashpool.envs.store.layout import Store, write_lines
from flashpool.envs.uv_cli import Progress, Uv

from . import bytecode
from .metadata import problems
from .spare_virtualenvs import SpareVirtualenvs
from .speculation import Begun, Furnished, SpeculativeBuild, furnish

__all__ = ["Builder", "Made", "Order"]

_log = logging.getLogger(__name__)

#: Called before publication; raises if there is no room.
Admit = Callable[[str, Path, Progress], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The inputs of a build."""

    digest: str
    plan: Plan
    base: BaseFacts
    roots: tuple[str, ...]
    #: Whether the environment with that digest in the store is damaged.
    replace: bool = False
    #: A speculative build that began before the plan existed.
    draft: SpeculativeBuild | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A finished build; `created` is when its facts were written."""

    seconds: Seconds
    created: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Builder:
    """Builds into one store."""

    uv: Uv
    store: Store
    spare_virtualenvs: SpareVirtualenvs
    settings: EnvSettings

    async def build(self, order: Order, progress: Progress, admit: Admit) -> Made:
        """Build and publish; raise the typed failure of any step."""
        began = time.monotonic()
        watch = _FetchWatch(progress)
        async with self._begun(order) as begun:
            venv = begun.venv
            furnished = begun.furnished or await self._furnish(order, begun.folder, watch)
            for line in furnished.said:
                progress(line)
            facts = await run_in_thread_shielded(self._complete, order, venv, furnished)
            # When a damaged environment is replaced, wheels are downloaded anew: only then is it
            # certain that no other process wrote to their files.
            if self.settings.volume_key or order.replace:
                final = self.store.environment(order.digest)
                jobs = os.cpu_count() or 1
                await self.finish(venv, final, jobs=jobs, from_wheels=order.replace)
            await admit(order.digest, venv, progress)
            await run_in_thread_shielded(self._publish, order, venv)
        total = time.monotonic() - began
        seconds = Seconds(fetch=watch.seconds, build=total - watch.seconds)
        return Made(seconds=seconds, created=facts.created)

    @asynccontextmanager
    async def _begun(self, order: Order) -> AsyncIterator[Begun]:
        async with AsyncExitStack() as stack:
            begun = None
            if order.draft is not None and not order.replace:
                begun = await order.draft.take(order.plan)
            if begun is not None:
                await stack.enter_async_context(begun.stack)
            else:
                folder = await stack.enter_async_context(
                    self.spare_virtualenvs.workshop(order.base)
                )
                begun = Begun(folder=folder, furnished=None, stack=stack)
            yield begun

    async def _furnish(self, order: Order, folder: Path, watch: _FetchWatch) -> Furnished:
        venv = folder / "env"
        # The shared cache may be damaged as well, so it is not used.
        uv = replace(self.uv, cache=folder / "cache") if order.replace else self.uv
        await self._install(uv, order.plan, venv, watch)
        layered = order.plan.layered
        return await run_in_thread_shielded(furnish, venv, order.base, layered=layered)

    async def _install(self, uv: Uv, plan: Plan, venv: Path, watch: _FetchWatch) -> None:
        if not plan.lines:
            return
        lock = venv.parent / "lock.txt"
        await run_in_thread_shielded(write_lines, lock, plan.lines)
        watch.start()
        await uv.install(venv, lock, fresh=local_names(plan.lines), progress=watch.line)

    def _complete(self, order: Order, venv: Path, furnished: Furnished) -> manifest.Facts:
        seen = order.base if order.plan.layered else order.base.bare()
        found = problems(order.roots, furnished.packages, seen)
        if found:
            raise VerificationFailed(
                "The packages of the built environment are not compatible with each other",
                words="\n".join(found[:20]),
                advice="request versions that are compatible",
            )
        facts = _facts(order, seen, furnished.files, furnished.bytes)
        manifest.write_facts(venv, facts)
        return facts

    def _publish(self, order: Order, venv: Path) -> None:
        target = self.store.environment(order.digest)
        if not self.store.publish(venv, target, replace=order.replace):
            _log.info("environment %s was published by another process first", order.digest)

    async def finish(
        self, environment: Path, final: Path, *, jobs: int = 1, from_wheels: bool = False
    ) -> None:
        """Write bytecode, then the seal over everything; may be repeated and interrupted anywhere.

        Raises:
            Tampered: a file is not what was published, or not what its wheel contains. With
                `from_wheels` (all
        was just unpacked) a wheel that contradicts itself is accepted.
            OSError: the disk is full, or gone.
        """
        compiled = self.settings.compile_bytecode or bool(self.settings.volume_key)
        # Hash files while modules are compiled: both take long, and each uses one core.
        hash_files = partial(manifest.hash_files, bytecode=False)
        hashing = asyncio.create_task(run_in_thread_shielded(hash_files, environment))
        compiling = asyncio.create_task(
            bytecode.complete(environment, final, compiled=compiled, jobs=jobs)
        )
        await asyncio.gather(hashing, compiling, return_exceptions=True)
        compiling.result()
        key, hashes = self.settings.volume_key, hashing.result()
        seal = partial(manifest.seal, environment, key, hashes=hashes, from_wheels=from_wheels)
        for path in await run_in_thread_shielded(seal):
            _log.warning("%s of %s differs from what its wheel declares", path, final.name)


class _FetchWatch:
    """Passes on uv's lines, and measures the time until everything is downloaded and built."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._began = 0.0
        self.seconds = 0.0

    def start(self) -> None:
        self._began = time.monotonic()

    def line(self, line: str) -> None:
        if line.startswith("Prepared "):
            self.seconds = time.monotonic() - self._began
        self._progress(line)


def _facts(order: Order, seen: BaseFacts, files: int, size: int) -> manifest.Facts:
    return manifest.Facts(
        digest=order.digest,
        mode=order.plan.mode,
        python_version=order.base.version,
        base_python=str(order.base.real_python),
        site_dirs=tuple(str(folder) for folder in seen.site_dirs),
        lock=order.plan.lines,
        decisions=order.plan.decisions,
        reason=order.plan.reason,
        created=time.time(),
        bytes=size,
        files=files,
    )
