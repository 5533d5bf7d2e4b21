"""Requirements to plan: two resolutions, side by side.

    constrained   the user's lines + runtime pins, base versions as constraints and stubs
    free          the same lines, without the base
    plan.decide   layer if the first worked and holds nothing back, else isolated

Both are asked for at once, because only their comparison tells whether the base
makes uv back-track to something absurd; waiting for the one hides the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .base import BaseFacts
from .errors import ResolutionFailed
from .plan import Locked, Plan, decide, isolated, parse_lock
from .spec import NormalSpec
from .stubs import StubBase, write_stubs
from .uv_cli import Progress, Uv

__all__ = ["Resolver"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolver:
    """Resolves specs on bases; `folder` is a scratch directory of the caller's."""

    uv: Uv
    pins: tuple[str, ...]

    async def plan(
        self,
        spec: NormalSpec,
        base: BaseFacts,
        folder: Path,
        *,
        refresh: bool = False,
        progress: Progress | None = None,
    ) -> Plan:
        """Decide what to build, or raise what stands in the way."""
        try:
            return await self._plan(spec, base, folder, self._pins(spec), refresh, progress)
        except ResolutionFailed as failure:
            # A dependency may want another cloudpickle or tblib than the server's. The
            # user's wish goes first: plain records take the place of pickled exceptions.
            loose = tuple(Requirement(pin).name for pin in self._pins(spec))
            if not any(name in failure.words for name in loose):
                raise _naming(failure, spec) from None
        try:
            return await self._plan(spec, base, folder, loose, refresh, progress)
        except ResolutionFailed as failure:
            raise _naming(failure, spec) from None

    def _pins(self, spec: NormalSpec) -> tuple[str, ...]:
        return tuple(pin for pin in self.pins if _name(pin) not in spec.names)

    async def _plan(
        self,
        spec: NormalSpec,
        base: BaseFacts,
        folder: Path,
        pins: tuple[str, ...],
        refresh: bool,
        progress: Progress | None,
    ) -> Plan:
        wanted = folder / "requirements.in"
        await asyncio.to_thread(
            wanted.write_text, "".join(f"{line}\n" for line in (*spec.lines, *pins))
        )
        free = self._free(wanted, base, refresh, progress)
        if not base.packages:
            return isolated(await free, "the base has no packages")
        stubs = await asyncio.to_thread(write_stubs, base, folder, without=_unbound(pins, base))
        constrained = self._constrained(wanted, base, stubs, refresh)
        first, second = await _both(constrained, free)
        return _judge(first, second, spec, base)

    async def _free(
        self, wanted: Path, base: BaseFacts, refresh: bool, progress: Progress | None
    ) -> tuple[Locked, ...]:
        text = await self.uv.resolve(wanted, base.python, refresh=refresh, progress=progress)
        return parse_lock(text)

    async def _constrained(
        self, wanted: Path, base: BaseFacts, stubs: StubBase, refresh: bool
    ) -> tuple[Locked, ...]:
        text = await self.uv.resolve(
            wanted,
            base.python,
            constraints=stubs.constraints,
            find_links=stubs.wheels,
            refresh=refresh,
        )
        return parse_lock(text)


def _name(pin: str) -> str:
    return canonicalize_name(Requirement(pin).name)


def _unbound(pins: tuple[str, ...], base: BaseFacts) -> set[str]:
    """Runtime packages that the base has in another version: the layer's copy wins."""
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
    """A failed resolution is an answer; anything else is raised."""
    try:
        return await resolving
    except ResolutionFailed as failure:
        return failure


async def _both(constrained: Awaitable[_Lock], free: Awaitable[_Lock]) -> tuple[_Outcome, _Outcome]:
    """Run both at once, wait for both; leave nothing running, however it ends.

    No short cut when the constrained lock holds nothing of the base: uv may have gone
    back to a version so old that it did not need the base's package yet.
    """
    first, second = (asyncio.ensure_future(_outcome(each)) for each in (constrained, free))
    try:
        await asyncio.gather(first, second)
        return first.result(), second.result()
    finally:
        for task in (first, second):
            task.cancel()
        await asyncio.wait({first, second})


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


def _naming(failure: ResolutionFailed, spec: NormalSpec) -> ResolutionFailed:
    """The same failure, with the requirement of the request that uv speaks of."""
    named = [item.line for item in spec.requirements if item.name in failure.words]
    return ResolutionFailed(
        failure.what,
        phase=failure.phase,
        requirement=", ".join(named[:3]),
        words=failure.words,
        advice="change the versions asked for; uv's words above name those that exclude each other",
    )
