"""Which environment a call gets while there is only one: the base interpreter's.

A request that names packages runs when the base has them all, and is told what is missing
when it has not. The seam of the environment store: whatever has `resolve` can stand here.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from dataclasses import dataclass
from typing import Final, Protocol, cast

from packaging.markers import Environment, default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion

from flashpool.pool.calls import BASE_ENVIRONMENT
from flashpool.pool.errors import EnvironmentError, EnvironmentStartFailed, InvalidRequest

_PROBE_LIMIT_S: Final = 60.0
_PROBE: Final = """
import importlib.metadata, json, platform, sys
found = {}
for entry in importlib.metadata.distributions():
    name = entry.metadata["Name"]
    if name:
        found.setdefault(name, entry.version)  # the first on sys.path is the one imported
json.dump({"python": platform.python_version(), "packages": found}, sys.stdout)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a request asks of its environment."""

    requirements: tuple[str, ...] = ()
    system: tuple[str, ...] = ()
    python_version: str | None = None

    def __bool__(self) -> bool:
        return bool(self.requirements or self.system or self.python_version)


class Environments(Protocol):
    """Finds, or makes, the environment of a spec."""

    async def resolve(self, spec: Spec) -> str:
        """The environment's name in the pool; raises `EnvironmentError`, `InvalidRequest`."""


@dataclass(frozen=True, slots=True)
class _Base:
    python: str
    packages: dict[str, str]


class BaseOnly:
    """The base environment, for calls it satisfies."""

    def __init__(self, base_python: str) -> None:
        self._python = base_python
        self._base: asyncio.Task[_Base] | None = None

    async def resolve(self, spec: Spec) -> str:
        """The base environment, or an error that says what it lacks."""
        wanted = [_parse(text) for text in spec.requirements]
        base = await self._look()
        missing = [str(item) for item in wanted if not _satisfied(item, base)]
        missing += [f"{name} (a system package)" for name in spec.system]
        if spec.python_version and not _same_python(spec.python_version, base.python):
            missing.append(f"Python {spec.python_version} (it runs {base.python})")
        if missing:
            raise EnvironmentError(
                "This server has only its base environment, which lacks: " + ", ".join(missing),
                missing=missing,
            )
        return BASE_ENVIRONMENT

    async def _look(self) -> _Base:
        """What the base interpreter has; asked once, however many wait for it."""
        if self._base is None or (self._base.done() and _failed(self._base)):
            self._base = asyncio.ensure_future(asyncio.to_thread(_probe, self._python))
        return await asyncio.shield(self._base)


def _failed(task: asyncio.Task[_Base]) -> bool:
    return task.cancelled() or task.exception() is not None


def _probe(python: str) -> _Base:
    try:
        done = subprocess.run(
            [python, "-I", "-c", _PROBE],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_PROBE_LIMIT_S,
            check=True,
        )
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise EnvironmentStartFailed(f"The base interpreter cannot be asked: {error}") from error
    names = {canonicalize_name(name): version for name, version in found["packages"].items()}
    return _Base(found["python"], cast("dict[str, str]", names))


def _parse(text: str) -> Requirement:
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        shown = text if len(text) <= 100 else f"{text[:100]}..."
        raise InvalidRequest(f"dependencies: {shown!r} is no requirement") from None
    return requirement


def _satisfied(requirement: Requirement, base: _Base) -> bool:
    if requirement.marker and not requirement.marker.evaluate(_environment(base)):
        return True  # not for this platform or Python
    version = base.packages.get(canonicalize_name(requirement.name))
    # What an extra or an address stands for cannot be told from names and versions.
    if version is None or requirement.extras or requirement.url:
        return False
    try:
        return requirement.specifier.contains(version, prereleases=True)
    except InvalidVersion:
        return False


def _environment(base: _Base) -> dict[str, str]:
    environment: Environment = default_environment()
    environment["python_full_version"] = base.python
    environment["python_version"] = ".".join(base.python.split(".")[:2])
    return {**cast("dict[str, str]", environment), "extra": ""}


def _same_python(wanted: str, have: str) -> bool:
    parts = wanted.split(".")
    return have.split(".")[: len(parts)] == parts
