"""An environment begun on a guess, while the index is still queried for versions.

    request ----+--> resolution, which queries the index -------> plan --.
                '--> draft: uv installs what the cache alone    --------+--> take(plan)
                     would resolve to; list files, read metadata            |
                           the same packages: the build is done already <---+--> others: an
                                                                     empty virtualenv, as if
                                                                     nothing had been begun

Querying the index takes longer than linking files from the cache, and can run in parallel. A draft
decides nothing: the resolution decides what is built, and a draft with other packages is discarded.
A draft builds no source, uses no network, runs only if there is plenty of disk space (files may be
copied), and is in scratch like all unfinished work. One process at a time begins with a request,
and others let it finish (claims.py). The code that takes a draft owns it: the request that began it
may be cancelled while others wait for the build.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from flashpool.envs.concurrency.cancellation import run_in_thread_or_undo, run_in_thread_shielded
from flashpool.envs.concurrency.disk_threads import run_in_thread
from flashpool.envs.errors import EnvironmentFailure
from flashpool.envs.resolving.base_interpreter import BaseFacts, BasePackage
from flashpool.envs.resolving.plan import Guess, Plan, parse_lock
from flashpool.envs.store import manifest
from flashpool.envs.store.apart import carried_out
from flashpool.envs.store.claims import Claims
from flashpool.envs.store.layout import write_lines
from flashpool.envs.uv_cli import Uv

from . import bytecode
from .base_commands import add_base_commands
from .metadata import read_packages, site_packages_of
from .spare_virtualenvs import SpareVirtualenvs
from .virtualenv import make_virtualenv

__all__ = ["Begun", "Furnished", "SpeculativeBuild", "SpeculativeBuilds", "furnish"]

_log = logging.getLogger(__name__)

_PTH: Final = "_flashpool_base.pth"


@dataclass(frozen=True, slots=True, kw_only=True)
class Furnished:
    """A virtualenv with all packages installed, and facts about it."""

    packages: Mapping[str, BasePackage]
    files: int
    bytes: int
    #: uv's output, reported to callers if the draft is used.
    said: tuple[str, ...] = ()

    def is_what(self, plan: Plan) -> bool:
        """Return whether it contains exactly the packages of a plan, in their versions."""
        wanted = {item.name: item.version for item in parse_lock("\n".join(plan.lines))}
        return wanted == {name: package.version for name, package in self.packages.items()}


@carried_out
def furnish(venv: Path, base: BaseFacts, *, layered: bool) -> Furnished:
    """Show the base to a complete virtualenv, read its metadata, list its files; blocking."""
    site_packages = site_packages_of(venv)
    bytecode.keep_out(site_packages)
    if layered:
        _show_base(site_packages, base)
        add_base_commands(venv / "bin", base.commands)
    packages = read_packages(site_packages)
    files, size = manifest.list_files(venv)
    return Furnished(packages=packages, files=files, bytes=size)


def _show_base(site_packages: Path, base: BaseFacts) -> None:
    """Make the base visible in the layer, after the layer itself.

    `addsitedir` rather than a bare path, so that the base's own .pth files are processed too.
    """
    lines = [f"import site; site.addsitedir({str(folder)!r})\n" for folder in base.site_dirs]
    (site_packages / _PTH).write_text("".join(lines))


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A scratch directory with a virtualenv in `env`: empty, unless `furnished`."""

    folder: Path
    furnished: Furnished | None
    #: Closing this deletes the directory.
    stack: AsyncExitStack

    @property
    def venv(self) -> Path:
        return self.folder / "env"


class SpeculativeBuild:
    """One speculative build, which is taken once or dropped."""

    def __init__(
        self,
        guess: Guess,
        base: BaseFacts,
        making: Coroutine[Any, Any, Begun | None],
        dropping: set[asyncio.Task[None]],
    ) -> None:
        self._task = asyncio.get_running_loop().create_task(making)
        self._dropping = dropping
        self._guess = guess
        self._base = base
        self._spoken_for = False

    def __repr__(self) -> str:
        state = "taken" if self._spoken_for else "free"
        return f"<SpeculativeBuild of {self._guess.lines}, {state}>"

    def claim(self) -> bool:
        """Claim the draft; return False if it was taken or dropped already.

        The claimant must take or drop it.
        """
        first, self._spoken_for = not self._spoken_for, True
        return first

    async def take(self, plan: Plan) -> Begun | None:
        """Return the directory in which to build this plan; None if the draft saves no work."""
        if not self.claim():
            return None
        try:
            # The draft may be right, and is nearly done: uv would need as long to begin anew.
            begun = await asyncio.shield(self._task)
            if begun is None:
                return None
            if begun.furnished is None or self._is_what(begun.furnished, plan):
                return begun
            return await self._emptied(begun)
        except BaseException:
            # A further cancellation ends only this wait: the deletion continues and is awaited
            # elsewhere.
            await asyncio.shield(self.drop())
            raise

    def _is_what(self, furnished: Furnished, plan: Plan) -> bool:
        return plan.layered == self._guess.layered and furnished.is_what(plan)

    async def _emptied(self, begun: Begun) -> Begun:
        """Return the same directory, emptied: uv would query an interpreter in another one."""
        _log.info("the early build used versions that are not the latest: building again")
        await run_in_thread_shielded(_empty, begun.folder, self._base)
        return Begun(folder=begun.folder, furnished=None, stack=begun.stack)

    def drop(self) -> asyncio.Task[None]:
        """Stop the draft and delete everything, in the background."""
        task = asyncio.get_running_loop().create_task(self._drop())
        self._dropping.add(task)
        task.add_done_callback(self._dropping.discard)
        return task

    async def _drop(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})
        begun = None if self._task.cancelled() else self._task.result()
        if begun is not None:
            await begun.stack.aclose()


@carried_out
def _empty(folder: Path, base: BaseFacts) -> None:
    venv = folder / "env"
    venv.rename(folder / "wrong")  # deleted later, with the folder
    make_virtualenv(venv, base.real_python, base.version)


@carried_out
def _touched(venv: Path) -> bool:
    """Return whether uv has installed anything yet."""
    return any(site_packages_of(venv).iterdir())


class SpeculativeBuilds:
    """Begins drafts in one store; on one event loop."""

    def __init__(
        self,
        uv: Uv,
        spare_virtualenvs: SpareVirtualenvs,
        claims: Claims,
        has_room: Callable[[], bool],
    ) -> None:
        self._uv = uv
        self._spare_virtualenvs = spare_virtualenvs
        self._claims = claims
        #: Requests for which this process has a draft: a claim names only the process, not the
        #: draft.
        self._keys: set[str] = set()
        self._has_room = has_room
        self._dropping: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def begun(
        self, guess: Guess | None, base: BaseFacts, key: str
    ) -> AsyncIterator[SpeculativeBuild | None]:
        """Provide a draft until the end of the block, or until its new owner is done."""
        if guess is None or not await run_in_thread(self._has_room):
            yield None
            return
        draft = SpeculativeBuild(guess, base, self._make(guess, base, key), self._dropping)
        try:
            yield draft
        finally:
            if draft.claim():
                draft.drop()
                self._spare_virtualenvs.prepare(base)  # the draft used the spare

    async def _make(self, guess: Guess, base: BaseFacts, key: str) -> Begun | None:
        async with AsyncExitStack() as stack:
            try:
                if not await stack.enter_async_context(self._claimed(key)):
                    return None
                folder = await stack.enter_async_context(self._spare_virtualenvs.workshop(base))
                furnished = await self._furnished(guess, base, folder)
            except (OSError, EnvironmentFailure) as error:
                _log.debug("no draft of %s: %s", guess.lines, error)
                return None
            return Begun(folder=folder, furnished=furnished, stack=stack.pop_all())

    @asynccontextmanager
    async def _claimed(self, key: str) -> AsyncIterator[bool]:
        if key in self._keys:
            yield False
            return
        self._keys.add(key)
        try:
            taken = await run_in_thread_or_undo(
                partial(self._claims.take, key), lambda _: self._release(key)
            )
            try:
                yield taken
            finally:
                await run_in_thread_shielded(self._release, key)
        finally:
            self._keys.discard(key)

    def _release(self, key: str) -> None:
        try:
            self._claims.release(key)
        except OSError as error:
            _log.warning("the claim on request %s stays until it is stale: %s", key, error)

    async def _furnished(self, guess: Guess, base: BaseFacts, folder: Path) -> Furnished | None:
        venv = folder / "env"
        wanted, left_out = folder / "guess.in", folder / "excludes.txt"
        said: list[str] = []
        for path, lines in ((wanted, guess.lines), (left_out, guess.left_out)):
            await run_in_thread_shielded(write_lines, path, lines)
        try:
            await self._uv.install_cached(venv, wanted, left_out, progress=_but_warnings(said))
        except EnvironmentFailure as failure:
            if await run_in_thread(_touched, venv):
                raise
            _log.debug("the cache alone does not answer %s: %s", guess.lines, failure)
            return None
        done = await run_in_thread_shielded(furnish, venv, base, layered=guess.layered)
        return replace(done, said=tuple(said))

    async def settled(self) -> None:
        """Wait until dropped drafts are deleted."""
        if self._dropping:
            await asyncio.wait(set(self._dropping))


def _but_warnings(said: list[str]) -> Callable[[str], None]:
    """Keep uv's lines except warnings: the resolution repeats those that are not the guess's."""
    return lambda line: None if line.startswith("warning: ") else said.append(line)
