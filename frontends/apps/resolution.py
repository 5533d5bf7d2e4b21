"""Resolves what would be installed beside an app, without installing it.

AppEnvironment -> an interpreter, found and run -> uv, with the artifact's versions as constraints
               -> Resolution: the packages beside those that the artifact brings
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flashpool.envs import EnvironmentFailure
from flashpool.envs.errors import ResolutionFailed
from flashpool.envs.resolving.base_interpreter import BaseFacts, Bases
from flashpool.envs.resolving.interpreters import find_interpreter, is_version
from flashpool.envs.resolving.plan import parse_lock
from flashpool.envs.store.locations import choose_places, without_making
from flashpool.envs.uv_cli import Uv, find_uv

from .contract import AppEnvironment

if TYPE_CHECKING:
    from flashpool.envs import EnvSettings

__all__ = ["Resolution", "interpreter_for", "resolve_beside"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """Packages that are installed beside the app, as lines of a requirements file."""

    lines: tuple[str, ...]


async def interpreter_for(python: str, settings: EnvSettings) -> tuple[Path, str]:
    """Return an interpreter of that version, the base if it fits, and its full version.

    Raises:
        EnvironmentFailure: no interpreter of that version is found.
    """
    with tempfile.TemporaryDirectory(prefix="flashpool-check-") as folder:
        base = await _interpreter(python, settings, Path(folder))
    return base.python, base.version


async def resolve_beside(environment: AppEnvironment, settings: EnvSettings) -> Resolution:
    """Resolve packages beside those of the artifact from an index; install nothing.

    Raises:
        EnvironmentFailure: no interpreter, no index, or no compatible versions.
    """
    with tempfile.TemporaryDirectory(prefix="flashpool-check-") as name:
        folder = Path(name)
        base = await _interpreter(environment.python, settings, folder)
        wanted = await _write(folder / "requirements.in", environment.requirements)
        constraints = await _write(folder / "constraints.txt", environment.constraints)
        try:
            text = await _uv(settings, folder).resolve(
                wanted, base.python, constraints=(constraints,)
            )
        except ResolutionFailed as failure:
            raise _naming(failure, environment) from None
    beside = [each for each in parse_lock(text) if each.name not in environment.brought]
    return Resolution(lines=tuple(each.line for each in beside))


async def _interpreter(python: str, settings: EnvSettings, folder: Path) -> BaseFacts:
    bases = Bases()
    base = await bases.facts(settings.base_python)
    if not python or is_version(base, python):
        return base
    return await find_interpreter(python, bases, _uv(settings, folder), folder)


def _uv(settings: EnvSettings, folder: Path) -> Uv:
    # A mere lookup creates no store: missing directories are created in a temporary folder.
    places = choose_places(without_making(settings, folder))
    return Uv(
        executable=find_uv(settings),
        cache=places.cache,
        settings=settings,
        limit_s=settings.build_timeout_s,
    )


async def _write(path: Path, lines: Iterable[str]) -> Path:
    await asyncio.to_thread(path.write_text, "".join(f"{line}\n" for line in lines))
    return path


def _naming(failure: ResolutionFailed, environment: AppEnvironment) -> EnvironmentFailure:
    """Name the artifact's packages in an error: the resolver presents them as the user's."""
    if not environment.constraints:
        return failure
    return failure.but(
        words=f"{failure.words}\nthe artifact brings: {', '.join(environment.constraints)}",
        advice="build the artifact again with versions of these packages that agree with the client's",
    )
