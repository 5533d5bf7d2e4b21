"""The requirements of a request, and their normal form.

    Spec (raw strings of a request) --normalise--> NormalSpec --> request key (digest.py)

Case, extras, order, spaces and duplicates do not matter. Anything that uv could read as an option
or a file of requirements is refused here, with the reason: a requirement line is data, never a
command line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from packaging.markers import Marker, UndefinedComparison, UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidName, canonicalize_name
from packaging.version import InvalidVersion, Version

from flashpool.envs.errors import SpecRefused

from .references import NormalRequirement, bare_reference, direct, reference_of
from .spelling import option_advice, spelling_advice

__all__ = [
    "PYTHONS",
    "Brought",
    "NormalRequirement",
    "NormalSpec",
    "Spec",
    "is_python_version",
    "normalise",
]

#: The oldest version that the worker's own modules support.
OLDEST_PYTHON: Final = (3, 10)
#: Versions that may be recommended for a request that fails on another one.
PYTHONS: Final = ("3.10", "3.11", "3.12", "3.13")
MAX_REQUIREMENTS: Final = 500
MAX_BROUGHT: Final = 5000
MAX_REQUIREMENT_CHARS: Final = 2000

_PYTHON: Final = re.compile(r"3\.\d{1,2}(\.\d{1,3})?")
_SYSTEM_PACKAGE: Final = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9]+)?(=[A-Za-z0-9.+:~-]+)?")
#: As in pip and uv: a `#` after a space begins a comment, and a `#` in a URL does not.
_COMMENT: Final = re.compile(r"[ \t]+#.*$")
#: An item that is only a comment is ignored, as in a file of requirements.
_COMMENT_LINE: Final = re.compile(r"[ \t]*#.*\n?")
_FORMS_ADVICE: Final = (
    "write it as in `numpy`, `numpy>=1.26`, `name @ https://...` or `git+https://...`"
)
_OPTIONS_ADVICE: Final = "give package requirements only; index settings belong to the server"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """The environment part of a request, as it was sent."""

    requirements: tuple[str, ...] = ()
    python_version: str | None = None
    system_packages: tuple[str, ...] = ()
    #: ``name==version`` of packages that the client brings in a folder, which is searched before
    #: the environment: other packages must be compatible with them, and they are not installed.
    brought: tuple[str, ...] = ()
    #: Whether to skip the memo and resolve again.
    refresh: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalSpec:
    """The normal form: sorted, merged, checked."""

    requirements: tuple[NormalRequirement, ...]
    python_version: str | None
    system_packages: tuple[str, ...]
    brought: tuple[Brought, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(requirement.line for requirement in self.requirements)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(requirement.name for requirement in self.requirements if requirement.name)

    @property
    def nameless(self) -> tuple[NormalRequirement, ...]:
        """The requirements whose names uv must find."""
        return tuple(item for item in self.requirements if item.nameless is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Brought:
    """A package that the client brings in a folder."""

    name: str
    version: Version

    @property
    def line(self) -> str:
        return f"{self.name}=={self.version}"


def normalise(spec: Spec, *, references: frozenset[str]) -> NormalSpec:
    """Check and normalise a spec; reads local requirements to hash their content."""
    if len(spec.requirements) > MAX_REQUIREMENTS:
        raise SpecRefused(
            f"{len(spec.requirements)} requirements; at most {MAX_REQUIREMENTS} are accepted",
            advice="name only what the code imports: dependencies of dependencies are installed automatically",
        )
    written = [raw for raw in spec.requirements if not _COMMENT_LINE.fullmatch(raw)]
    parsed = [_requirement(raw, references) for raw in written]
    return NormalSpec(
        requirements=tuple(sorted(_merge(parsed), key=lambda item: (item.name, item.identity))),
        python_version=_python(spec.python_version),
        system_packages=_system_packages(spec.system_packages),
        brought=_brought(spec.brought),
    )


def _brought(lines: tuple[str, ...]) -> tuple[Brought, ...]:
    if len(lines) > MAX_BROUGHT:
        raise SpecRefused(
            f"{len(lines)} packages are brought; at most {MAX_BROUGHT} are accepted",
            advice="bring fewer, and name the others as requirements",
        )
    found = {}
    for line in lines:
        name, _, version = line.partition("==")
        try:
            one = Brought(name=canonicalize_name(name, validate=True), version=Version(version))
        except (InvalidName, InvalidVersion):
            raise SpecRefused(
                f"{line!r} does not name a package that is brought",
                requirement=line,
                advice="write it as name==version",
            ) from None
        found[one.name] = one
    return tuple(found[name] for name in sorted(found))


def is_python_version(text: str) -> bool:
    """Return whether a text is a version of Python 3, with or without a patch release."""
    return _PYTHON.fullmatch(text) is not None


def _python(version: str | None) -> str | None:
    if version is None or not version.strip():
        return None
    version = version.strip()
    if not is_python_version(version):
        raise SpecRefused(
            f"python_version {version!r} is not understood", advice="write it as 3.12 or 3.12.1"
        )
    oldest = ".".join(map(str, OLDEST_PYTHON))
    if int(version.split(".")[1]) < OLDEST_PYTHON[1]:
        raise SpecRefused(
            f"python_version {version!r} is too old: calls run on Python {oldest} or later",
            advice=f"ask for {oldest} or later, or leave it out for the server's own",
        )
    return version


def _system_packages(names: Iterable[str]) -> tuple[str, ...]:
    found = set()
    for raw in names:
        name = raw.strip()
        if not name:
            continue
        if not _SYSTEM_PACKAGE.fullmatch(name):
            raise SpecRefused(
                f"{raw!r} is not the name of a system package",
                requirement=raw,
                advice="name Debian packages, such as libgl1 or ffmpeg, one an item",
            )
        found.add(name)
    return tuple(sorted(found))


def _requirement(raw: str, references: frozenset[str]) -> NormalRequirement:
    text = _plain(raw)
    bare = bare_reference(text)
    if bare is not None:
        if bare.marker:
            _check_marker(Marker(bare.marker), raw)
        return direct(bare, raw, references)
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        raise SpecRefused(
            f"{raw!r} is not a requirement: {str(error).splitlines()[0]}",
            requirement=raw,
            advice=spelling_advice(text) or _FORMS_ADVICE,
        ) from None
    _check_marker(requirement.marker, raw)
    if requirement.url:
        return direct(reference_of(requirement), raw, references)
    return _indexed(requirement)


def _check_marker(marker: Marker | None, raw: str) -> None:
    try:
        if marker is not None:
            marker.evaluate({"extra": ""})
    except (UndefinedComparison, UndefinedEnvironmentName) as error:
        raise SpecRefused(
            f"{raw!r} has a marker whose sides cannot be compared: {error}",
            requirement=raw,
            advice="compare versions with versions, and text with == or != only",
        ) from None


def _plain(raw: str) -> str:
    text = _COMMENT.sub("", raw).strip()
    if not text or len(text) > MAX_REQUIREMENT_CHARS:
        raise SpecRefused(
            f"a requirement must have 1 to {MAX_REQUIREMENT_CHARS} characters",
            requirement=text[:80],
            advice="write one package an item, as in `numpy` or `numpy>=1.26`",
        )
    if text.startswith("-"):
        raise SpecRefused(
            f"{raw!r} is an option, not a requirement", requirement=raw, advice=option_advice(text)
        )
    if any(ord(char) < 32 or ord(char) == 127 for char in text) or " -" in text:
        raise SpecRefused(
            f"{raw!r} contains an option or a control character",
            requirement=raw,
            advice=_OPTIONS_ADVICE,
        )
    if "${" in text:
        raise SpecRefused(
            f"{raw!r} refers to a variable of the server",
            requirement=raw,
            advice="write the value itself",
        )
    return text


def _indexed(requirement: Requirement) -> NormalRequirement:
    name = canonicalize_name(requirement.name)
    requirement.name = name
    requirement.extras = {canonicalize_name(extra) for extra in requirement.extras}
    line = str(requirement)
    return NormalRequirement(name=name, line=line, identity=line)


def _merge(parsed: list[NormalRequirement]) -> Iterable[NormalRequirement]:
    """Merge plain requirements of one name; keep direct ones, and markers apart."""
    joined: dict[tuple[str, str], Requirement] = {}
    kept: dict[str, NormalRequirement] = {}
    for item in parsed:
        if item.direct:
            kept[item.identity] = item
            continue
        requirement = Requirement(item.line)
        first = joined.setdefault((item.name, str(requirement.marker)), requirement)
        if first is not requirement:
            first.extras |= requirement.extras
            first.specifier &= requirement.specifier
    return [*kept.values(), *(_indexed(requirement) for requirement in joined.values())]
