"""From requirements to a plan: two resolutions in parallel.

    constrained   the user's lines + runtime pins, base versions as constraints and stubs
    newest        the lines that may fall behind, alone, without their dependencies
    free          all lines, without the base: needed if the first two do not agree
    plan.decide   layer if the first worked and holds nothing back, otherwise isolated

No version of a named package is newer than the version that it has alone. So a constrained lock
that is as new as `newest` is as new as any free lock. The free resolution, which takes as long as
all others together, is needed only for conflicts; and for `explain`, which reports the alternatives
of every package.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from flashpool.envs.concurrency.cancellation import run_in_thread_shielded, wait_shielded
from flashpool.envs.errors import BuildFailed, EnvironmentFailure, ResolutionFailed
from flashpool.envs.uv_cli import Progress, Uv

from .base_interpreter import BaseFacts
from .base_stubs import StubBase, Stubs, unmarked
from .naming import Naming
from .plan import (
    Guess,
    Locked,
    Plan,
    clash,
    decide,
    fallen_behind,
    isolated,
    local_names,
    open_lines,
    parse_lock,
)
from .spec import NormalSpec

__all__ = ["Question", "Resolver"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One spec on one base; `folder` is a scratch directory that the caller owns."""

    spec: NormalSpec
    base: BaseFacts
    folder: Path
    refresh: bool = False
    #: Whether to compare every package with a resolution that is free of the base.
    thorough: bool = False
    progress: Progress | None = None

    async def write(self, name: str, lines: Iterable[str]) -> Path:
        """Write requirements to a file, which is the only way in which they reach uv."""
        path = self.folder / name
        text = "".join(f"{line}\n" for line in lines)
        await run_in_thread_shielded(path.write_text, text)
        return path

    async def constraints(self) -> tuple[Path, ...]:
        """Write the constraints of brought packages, if there are any; return the file."""
        brought = self.spec.brought
        return (await self.write("brought.txt", (one.line for one in brought)),) if brought else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolver:
    """Resolves specs on bases."""

    uv: Uv
    stubs: Stubs
    pins: tuple[str, ...]

    async def prepare(self, base: BaseFacts) -> None:
        """Write the base's stubs before the first request."""
        if base.packages:
            await self.stubs.of(base, without=_unbound(self.pins, base))

    async def named(self, question: Question) -> NormalSpec:
        """Return the question's spec, with the names that only uv can find."""
        naming = Naming(
            self.uv,
            question.base,
            question.folder,
            refresh=question.refresh,
            progress=question.progress,
        )
        return await naming.complete(question.spec)

    def guess(self, spec: NormalSpec, base: BaseFacts) -> Guess | None:
        """Return what to install before there is a plan; None if a guess is hopeless."""
        if spec.brought or any(item.direct for item in spec.requirements):
            return None
        pins = self._pins(spec)
        layered = bool(base.packages) and not clash(spec, base)
        left_out = sorted(set(base.packages) - _unbound(pins, base)) if layered else ()
        return Guess(lines=(*spec.lines, *pins), left_out=tuple(left_out), layered=layered)

    def _pins(self, spec: NormalSpec) -> tuple[str, ...]:
        there = {*spec.names, *(package.name for package in spec.brought)}
        return tuple(pin for pin in self.pins if _name(pin) not in there)

    async def plan(self, question: Question) -> Plan:
        """Decide what to build, or raise the failure."""
        spec = question.spec
        pins = self._pins(spec)
        try:
            return await self._plan(question, pins)
        except ResolutionFailed as failure:
            # A dependency may need another cloudpickle or tblib than the server's. The user's
            # requirements win: plain records then replace pickled exceptions.
            loose = tuple(Requirement(pin).name for pin in pins)
            if not any(name in failure.words for name in loose):
                raise _naming(failure, spec) from None
        try:
            return await self._plan(question, loose)
        except ResolutionFailed as failure:
            raise _naming(failure, spec) from None

    async def resolves(self, question: Question, version: str, package: str) -> bool:
        """Return whether the request resolves on another Python.

        If `package` is given, it must have a wheel there.
        """
        wanted = await question.write("elsewhere.in", question.spec.lines)
        try:
            await self.uv.resolve(
                wanted,
                question.base.python,
                constraints=await question.constraints(),
                python_version=version,
                no_source=package,
            )
        except (ResolutionFailed, BuildFailed):
            return False
        return True

    async def _plan(self, question: Question, pins: tuple[str, ...]) -> Plan:
        spec, base = question.spec, question.base
        wanted = await question.write("requirements.in", (*spec.lines, *pins))
        if not base.packages:
            alone = await self._free(question, wanted)
            return isolated(alone, "the base has no packages", spec.names)
        if excluded := clash(spec, base):
            return isolated(await self._free(question, wanted), excluded, spec.names)
        stubs = await self.stubs.of(base, without=_unbound(pins, base))
        constrained, other = await _both(
            self._constrained(question, wanted, stubs), self._compared(question, wanted)
        )
        if question.thorough or _keeps_up(constrained, other, spec, base):
            return _judge(constrained, other, spec, base)
        free = await _outcome(self._free(question, wanted))
        return _judge(constrained, free, spec, base)

    async def _free(self, question: Question, wanted: Path) -> tuple[Locked, ...]:
        text = await self.uv.resolve(
            wanted,
            question.base.python,
            constraints=await question.constraints(),
            refresh=question.refresh,
            fresh=local_names(question.spec.lines),
            progress=question.progress,
        )
        return _to_install(text, question.spec)

    async def _constrained(
        self, question: Question, wanted: Path, stubs: StubBase
    ) -> tuple[Locked, ...]:
        text = await self.uv.resolve(
            wanted,
            question.base.python,
            constraints=(stubs.constraints, *await question.constraints()),
            find_links=stubs.wheels,
            refresh=question.refresh,
            fresh=local_names(question.spec.lines),
            progress=_warnings(question.progress),
        )
        return _to_install(text, question.spec)

    async def _compared(self, question: Question, wanted: Path) -> tuple[Locked, ...]:
        """Return the lock to compare the constrained lock with; empty if every line is fixed."""
        if question.thorough:
            return await self._free(question, wanted)
        lines = open_lines(question.spec, question.base)
        if not lines:
            return ()
        alone = await question.write("named.in", lines)
        text = await self.uv.resolve(
            alone,
            question.base.python,
            constraints=await question.constraints(),
            dependencies=False,
            refresh=question.refresh,
        )
        return parse_lock(text)


def _to_install(text: str, spec: NormalSpec) -> tuple[Locked, ...]:
    """Return the lock without brought packages."""
    brought = {package.name for package in spec.brought}
    return tuple(locked for locked in parse_lock(text) if locked.name not in brought)


def _warnings(progress: Progress | None) -> Progress | None:
    """Pass on uv's warnings, for example about an extra that a package does not have."""
    if progress is None:
        return None
    return lambda line: progress(unmarked(line)) if line.startswith("warning: ") else None


def _name(pin: str) -> str:
    return canonicalize_name(Requirement(pin).name)


def _unbound(pins: tuple[str, ...], base: BaseFacts) -> set[str]:
    """Return runtime packages that the base has in another version: the layer's copy wins."""
    requirements = [Requirement(pin) for pin in pins]
    return {
        name
        for requirement in requirements
        if (name := canonicalize_name(requirement.name)) in base.packages
        and not requirement.specifier.contains(base.packages[name].version, prereleases=True)
    }


_Lock = tuple[Locked, ...]
_Outcome = _Lock | ResolutionFailed


async def _outcome(resolving: Awaitable[_Lock]) -> _Outcome:
    """Return a failed resolution as a value; raise any other error."""
    try:
        return await resolving
    except ResolutionFailed as failure:
        return failure


async def _both(
    constrained: Awaitable[_Lock], other: Awaitable[_Lock]
) -> tuple[_Outcome, _Outcome]:
    """Run both at once and wait for both; leave nothing running, even if one raises.

    There is no short cut if the constrained lock contains nothing of the base: uv may have chosen a
    version so old that it did not need the base's package yet.
    """
    first, second = (asyncio.ensure_future(_outcome(each)) for each in (constrained, other))
    try:
        await asyncio.gather(first, second)
        return first.result(), second.result()
    finally:
        for task in (first, second):
            task.cancel()
        await wait_shielded(asyncio.wait({first, second}))


def _keeps_up(constrained: _Outcome, newest: _Outcome, spec: NormalSpec, base: BaseFacts) -> bool:
    if isinstance(constrained, ResolutionFailed) or isinstance(newest, ResolutionFailed):
        return False
    return not fallen_behind(constrained, newest, spec, base)


def _judge(constrained: _Outcome, free: _Outcome, spec: NormalSpec, base: BaseFacts) -> Plan:
    if isinstance(free, ResolutionFailed):
        if isinstance(constrained, ResolutionFailed):
            raise free
        return decide(constrained, None, spec, base, "")
    if isinstance(constrained, ResolutionFailed):
        conflict = f"the base conflicts: {_cause(constrained.words)}"
        return decide(None, free, spec, base, conflict)
    return decide(constrained, free, spec, base, "")


def _cause(words: str) -> str:
    lines = [line.strip().removeprefix("cause:").strip() for line in words.splitlines()]
    return " ".join(lines[1:])[:500] or "no solution with its versions"


def _naming(failure: ResolutionFailed, spec: NormalSpec) -> EnvironmentFailure:
    """Return the failure with the requirement of the request that uv mentions."""
    named = [item.line for item in spec.requirements if item.name and item.name in failure.words]
    advice = (
        failure.advice
        or "change the versions asked for; uv's words above name those that exclude each other"
    )
    words = failure.words
    if spec.brought:
        # uv treats constraints of brought packages like requirements in its message.
        words += f"\npackages that are brought along: {', '.join(one.line for one in spec.brought)}"
        advice = "bring versions of these packages that go with what is asked for beside them"
    return failure.but(requirement=", ".join(named[:3]), words=words, advice=advice)
