"""The base: the interpreter on which environments are built, and its packages.

    python -I probe.py --JSON--> BaseFacts (packages, markers, fingerprint)

The fingerprint covers the interpreter, its path, the platform, and every package with its version.
The facts are read once, and again when a site directory's modification time changes, so that no
restart is needed after an image was patched.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from packaging.markers import UndefinedComparison, default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from flashpool.envs.errors import InterpreterMissing
from flashpool.envs.process import run

__all__ = ["BaseFacts", "BasePackage", "Bases", "parse_report"]

_PROBE: Final = Path(__file__).with_name("probe.py")
_PROBE_LIMIT_S: Final = 60.0
_KEPT_WORDS: Final = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class BasePackage:
    """One installed distribution."""

    name: str
    version: Version
    requires: tuple[str, ...] = ()
    extras: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseFacts:
    """The facts about a base that affect builds."""

    python: Path
    real_python: Path
    version: str
    tag: str
    platform: str
    site_dirs: tuple[Path, ...]
    packages: Mapping[str, BasePackage] = field(repr=False)
    markers: Mapping[str, str] = field(repr=False)
    fingerprint: str
    interpreter_identity: str
    #: Console scripts of the base's packages: names, and `module:function`.
    commands: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: Packages that are searched before the environment's: `beside`.
    brought: Mapping[str, BasePackage] = field(default_factory=dict, repr=False)

    def marker_environment(self, extra: str = "") -> dict[str, str]:
        """Return markers as the target evaluates them, not as this process does."""
        environment = {key: str(value) for key, value in default_environment().items()}
        return {**environment, **self.markers, "extra": extra}

    def applies(self, requirement: Requirement, extras: Iterable[str] = ()) -> bool:
        """Return whether a requirement's marker holds on this base, for any of the extras."""
        if requirement.marker is None:
            return True
        try:
            return any(
                requirement.marker.evaluate(self.marker_environment(extra))
                for extra in ("", *extras)
            )
        except UndefinedComparison:
            return True  # like uv, which then installs the requirement

    def bare(self) -> BaseFacts:
        """Return the same interpreter without packages, for an isolated environment."""
        return BaseFacts(
            python=self.python,
            real_python=self.real_python,
            version=self.version,
            tag=self.tag,
            platform=self.platform,
            site_dirs=(),
            packages={},
            markers=self.markers,
            fingerprint=self.interpreter_identity,
            interpreter_identity=self.interpreter_identity,
            brought=self.brought,
        )

    def beside(self, brought: Iterable[BasePackage]) -> BaseFacts:
        """Return the base as seen beside brought packages, which hide its own.

        A package of the base that needs another version of a brought package counts as absent, and
        so does a package that needs an absent one.
        """
        hiding = {package.name: package for package in brought}
        left = {name: package for name, package in self.packages.items() if name not in hiding}
        unfit = self._unfit(left, hiding)
        while unfit:
            left = {name: package for name, package in left.items() if name not in unfit}
            unfit = self._unfit(left, hiding)
        return replace(self, packages=left, brought=hiding)

    def _unfit(
        self, left: Mapping[str, BasePackage], hiding: Mapping[str, BasePackage]
    ) -> frozenset[str]:
        gone = self.packages.keys() - left.keys() - hiding.keys()
        return frozenset(
            name
            for name, package in left.items()
            for requirement in map(Requirement, package.requires)
            if self.applies(requirement)
            for needed in [canonicalize_name(requirement.name)]
            if needed in gone
            or (
                needed in hiding
                and not requirement.specifier.contains(hiding[needed].version, prereleases=True)
            )
        )


def parse_report(python: Path, report: Mapping[str, Any]) -> BaseFacts:
    """Turn the probe's report into facts."""
    packages = {package.name: package for package in _packages(report["packages"])}
    real = Path(report["executable"]).resolve()
    markers = {str(key): str(value) for key, value in report["markers"].items()}
    interpreter = [
        str(real),
        report["base_prefix"],
        markers["python_full_version"],
        report["cache_tag"],
        report["soabi"],
        report["platform"],
        report["libc"],
    ]
    identity = _hash(interpreter)
    installed = sorted(f"{package.name}=={package.version}" for package in packages.values())
    return BaseFacts(
        python=python,
        real_python=real,
        version=markers["python_full_version"],
        tag=str(report["soabi"] or report["cache_tag"]),
        platform=str(report["platform"]),
        site_dirs=tuple(Path(folder) for folder in report["site_dirs"]),
        packages=packages,
        markers=markers,
        fingerprint=_hash([identity, report["prefix"], report["site_dirs"], installed]),
        interpreter_identity=identity,
        commands=dict(report.get("commands", {})),
    )


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:40]


def _packages(rows: Iterable[Mapping[str, Any]]) -> Iterable[BasePackage]:
    for row in rows:
        try:
            version = Version(row["version"])
        except InvalidVersion:
            continue  # no requirement can name this version, so treat the package as absent
        yield BasePackage(
            name=canonicalize_name(row["name"]),
            version=version,
            requires=tuple(_readable(row["requires"])),
            extras=frozenset(canonicalize_name(extra) for extra in row["extras"]),
        )


def _readable(requirements: Iterable[str]) -> Iterable[str]:
    for text in requirements:
        try:
            Requirement(text)
        except InvalidRequirement:
            continue
        yield text


class Bases:
    """Facts per interpreter, probed once, and again after modification times change."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, ...], BaseFacts]] = {}
        self._probing: dict[Path, asyncio.Lock] = {}

    async def facts(self, python: Path) -> BaseFacts:
        """Return the facts about an interpreter."""
        async with self._probing.setdefault(python, asyncio.Lock()):
            known = self._known.get(python)
            if known and known[0] == _stamps(known[1]):
                return known[1]
            facts = await probe(python)
            self._known[python] = (_stamps(facts), facts)
            return facts


def _stamps(facts: BaseFacts) -> tuple[int, ...]:
    stamps = []
    for path in (facts.python, *facts.site_dirs):
        try:
            stamps.append(os.stat(path).st_mtime_ns)
        except OSError:
            stamps.append(0)
    return tuple(stamps)


async def probe(python: Path) -> BaseFacts:
    """Run the interpreter to get its facts."""
    finished = None
    try:
        finished = await run(
            [str(python), "-I", str(_PROBE)],
            environment=_probe_environment(),
            limit_s=_PROBE_LIMIT_S,
        )
        return parse_report(python, json.loads(finished.stdout))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InterpreterMissing(
            f"{python} does not work as an interpreter to build on: {error}",
            words=finished.stderr[-_KEPT_WORDS:] if finished else "",
            advice="set FLASHPOOL_BASE_PYTHON to an interpreter that runs",
        ) from None


def _probe_environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
