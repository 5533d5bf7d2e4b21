"""Decides what will be built, and why: the pure half of resolving.

    uv's lock (text) --parse_lock--> Locked ...
    constrained lock + free lock + base --decide--> Plan (mode, lines, decisions)

No function here runs a command or reads a file, so tables test every rule.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from flashpool.envs.lease import Decision, Where

from .base_interpreter import BaseFacts
from .spec import NormalSpec

__all__ = [
    "Guess",
    "Locked",
    "Plan",
    "clash",
    "decide",
    "fallen_behind",
    "from_base",
    "isolated",
    "local_names",
    "open_lines",
    "parse_lock",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """One package of a lock; a direct reference has no version."""

    name: str
    line: str
    version: Version | None
    via: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A planned environment: `lines` is exactly what is installed."""

    mode: Where
    lines: tuple[str, ...]
    decisions: tuple[Decision, ...]
    reason: str = ""

    @property
    def layered(self) -> bool:
        return self.mode == "layer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """What to install from the cache alone, while the plan is being made."""

    lines: tuple[str, ...]
    #: Names of packages that the base provides.
    left_out: tuple[str, ...]
    layered: bool


def parse_lock(text: str) -> tuple[Locked, ...]:
    """Parse uv's lines: `name==1.0  # via x` or `name @ url  # via y`."""
    rows = (line.strip() for line in text.splitlines())
    return tuple(_locked(row) for row in rows if row and not row.startswith(("#", "-")))


def _locked(row: str) -> Locked:
    line, _, comment = row.partition("  #")
    line = line.strip()
    try:
        requirement = Requirement(line)
    except InvalidRequirement as error:
        raise ValueError(f"uv wrote a lock line that is not a requirement: {line!r}") from error
    pins = [part.version for part in requirement.specifier if part.operator in {"==", "==="}]
    return Locked(
        name=canonicalize_name(requirement.name),
        line=line,
        version=Version(pins[0]) if pins and not requirement.url else None,
        via=_via(comment),
    )


def _via(comment: str) -> str:
    """Return the packages that need a package, without flashpool's own file names."""
    names = comment.strip().removeprefix("via ").split(",")
    return ", ".join(
        name.strip() for name in names if name.strip() and not name.strip().startswith("-")
    )


def local_names(lines: Iterable[str]) -> tuple[str, ...]:
    """Return packages of a lock that are files or directories on this machine."""
    found = (Requirement(line) for line in lines if " @ file:" in line)
    return tuple(canonicalize_name(requirement.name) for requirement in found)


def from_base(spec: NormalSpec, base: BaseFacts) -> Plan | None:
    """Return the plan to use the base itself if it satisfies the request; else None."""
    if any(item.direct for item in spec.requirements):
        return None
    pending = [Requirement(line) for line in spec.lines]
    needed: dict[str, str] = {}
    seen: set[str] = set()
    while pending:
        requirement = pending.pop()
        if str(requirement) in seen or not base.applies(requirement):
            continue
        seen.add(str(requirement))
        if not _satisfied(requirement, base):
            return None
        needed[canonicalize_name(requirement.name)] = str(requirement)
        pending += _of_extras(requirement, base)
    decisions = tuple(
        Decision(
            name=name,
            version=str(base.packages[name].version),
            where="base",
            why=f"the base satisfies {text}",
        )
        for name, text in sorted(needed.items())
    )
    return Plan(mode="base", lines=(), decisions=decisions, reason="the base has all of it")


def _satisfied(requirement: Requirement, base: BaseFacts) -> bool:
    package = base.packages.get(canonicalize_name(requirement.name))
    if package is None or not requirement.specifier.contains(package.version, prereleases=True):
        return False
    wanted = {canonicalize_name(extra) for extra in requirement.extras}
    return wanted <= package.extras


def _of_extras(requirement: Requirement, base: BaseFacts) -> Iterable[Requirement]:
    """Yield what a package's extras add; its plain dependencies concern only the base."""
    for text in base.packages[canonicalize_name(requirement.name)].requires:
        needed = Requirement(text)
        if not requirement.extras or needed.marker is None or base.applies(needed):
            continue
        if base.applies(needed, requirement.extras):
            needed.marker = None
            yield needed


def clash(spec: NormalSpec, base: BaseFacts) -> str:
    """Return why the request's own lines exclude the base; empty if they do not."""
    for item in spec.requirements:
        package = base.packages.get(item.name)
        if package is None or item.direct:
            continue
        requirement = Requirement(item.line)
        if not base.applies(requirement):
            continue
        if not requirement.specifier.contains(package.version, prereleases=True):
            return f"the base conflicts: it has {item.name} {package.version}, not {item.line}"
    return ""


def open_lines(spec: NormalSpec, base: BaseFacts) -> tuple[str, ...]:
    """Return lines whose version uv chooses: not the base's, not pinned, not a reference."""
    return tuple(
        item.line
        for item in spec.requirements
        if not item.direct and item.name not in base.packages and not _pinned(item.line)
    )


def _pinned(line: str) -> bool:
    parts = Requirement(line).specifier
    return any(part.operator == "==" and "*" not in part.version for part in parts)


def fallen_behind(
    constrained: Iterable[Locked], free: Iterable[Locked], spec: NormalSpec, base: BaseFacts
) -> str:
    """Return why the base's versions hold a named package back too far; empty if they do not.

    A named package that the base itself has is meant to come from the base, whatever is newer
    elsewhere: only packages that would be installed are judged.
    """
    newest = {locked.name: locked.version for locked in free}
    for locked in constrained:
        other = newest.get(locked.name)
        if locked.name not in spec.names or locked.name in base.packages:
            continue
        if locked.version is None or other is None:
            continue
        if (locked.version.epoch, locked.version.major) < (other.epoch, other.major):
            return (
                f"with the base's versions {locked.name} would be {locked.version}, "
                f"a major version behind {other}"
            )
    return ""


def decide(
    constrained: tuple[Locked, ...] | None,
    free: tuple[Locked, ...] | None,
    spec: NormalSpec,
    base: BaseFacts,
    conflict: str,
) -> Plan:
    """Choose between a layer over the base and an isolated environment."""
    if constrained is not None:
        behind = fallen_behind(constrained, free or (), spec, base)
        if not behind:
            return _layer(constrained, free or (), spec, base)
        conflict = behind
    assert free is not None, "neither resolution succeeded"
    return isolated(free, conflict, spec.names)


def isolated(free: tuple[Locked, ...], reason: str, asked: Collection[str]) -> Plan:
    """Return a plan that installs everything and ignores the base; ``asked``: requested names."""
    decisions = tuple(
        Decision(
            name=item.name,
            version=_version(item),
            where="isolated",
            why=f"{_origin(item, asked)}; {reason}",
        )
        for item in free
    )
    return Plan(
        mode="isolated",
        lines=tuple(item.line for item in free),
        decisions=decisions,
        reason=reason,
    )


def _layer(
    constrained: tuple[Locked, ...], free: tuple[Locked, ...], spec: NormalSpec, base: BaseFacts
) -> Plan:
    newest = {locked.name: locked.version for locked in free}
    installed = [item for item in constrained if not provided(item, base)]
    decisions = tuple(
        Decision(
            name=item.name,
            version=_version(item, base),
            where="base" if provided(item, base) else "layer",
            why=_why(item, newest, spec, base),
        )
        for item in constrained
    )
    return Plan(mode="layer", lines=tuple(item.line for item in installed), decisions=decisions)


def provided(item: Locked, base: BaseFacts) -> bool:
    """Return whether the base has exactly that version (apart from a stub's local label)."""
    package = base.packages.get(item.name)
    if package is None or item.version is None:
        return False
    return item.version.public == package.version.public


def _version(item: Locked, base: BaseFacts | None = None) -> str:
    if base is not None and provided(item, base):
        return str(base.packages[item.name].version)
    return str(item.version) if item.version else item.line.partition(" @ ")[2]


def _origin(item: Locked, asked: Collection[str]) -> str:
    if item.via:
        return f"needed by {item.via}"
    return "asked for" if item.name in asked else "flashpool needs it in every environment"


def _why(
    item: Locked, newest: Mapping[str, Version | None], spec: NormalSpec, base: BaseFacts
) -> str:
    origin = _origin(item, spec.names)
    if provided(item, base):
        return f"{origin}; the base has it"
    other = newest.get(item.name)
    if item.version is not None and other is not None and item.version < other:
        return f"{origin}; {other} exists, but does not go with the base"
    return origin
