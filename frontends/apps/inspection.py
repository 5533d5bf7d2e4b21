"""Inspects an artifact without running its code, for `flashpool check`.

DIR or archive -> Inspection: the summary, and for each resource whether it can be served
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flashpool.envs import EnvironmentFailure

from .artifacts.artifact import limits_of
from .artifacts.unpacking import extract_archive, open_archive
from .compiled_modules import explain_foreign, find_foreign
from .contract import AppEnvironment, ArtifactSummary, DeployedApp
from .errors import AppError, ResourceRefused
from .generations import contract_of
from .resolution import Resolution, interpreter_for, resolve_beside
from .route_limits import RouteTable

if TYPE_CHECKING:
    from flashpool.envs import EnvSettings
    from flashpool.frontends.settings.table import Settings

__all__ = ["EnvironmentLook", "Inspected", "Inspection", "inspect", "unpacked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentLook:
    """The interpreter and packages found for the resources that share an environment."""

    environment: AppEnvironment
    python: Path | None
    version: str
    resolution: Resolution | None
    problem: str
    #: A sentence about compiled modules for another Python; empty without such modules.
    foreign: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """Facts about one resource."""

    name: str
    app: DeployedApp | None = None
    #: Why the resource cannot be served; empty if it can.
    problem: str = ""
    timeouts: str = ""
    isolation: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """Facts about an artifact, or about one of its resources."""

    summary: ArtifactSummary
    resources: tuple[Inspected, ...]
    environments: tuple[EnvironmentLook, ...]

    @property
    def is_good(self) -> bool:
        problems = [each.problem for each in self.resources]
        return not any([*problems, *(each.problem for each in self.environments)])


@contextmanager
def unpacked(target: Path, settings: Settings) -> Iterator[Path]:
    """Provide a folder during the context: the target itself, or the contents of an archive.

    Raises:
        AppError: the server would not serve this archive.
    """
    if target.is_dir():
        yield target
        return
    with tempfile.TemporaryDirectory(prefix="flashpool-check-") as name:
        folder = Path(name) / "app"
        folder.mkdir()
        with open_archive(target) as file:
            extract_archive(file, target, folder, limits_of(settings), threading.Event())
        yield folder


async def inspect(
    folder: Path, settings: Settings, environ: Mapping[str, str], resource: str = ""
) -> Inspection:
    """Inspect one resource, or all of them.

    Raises:
        AppError: the manifest cannot be read, or has no such resource.
    """
    contract = contract_of(folder, environ)
    summary = contract.summary(folder)
    names = [each.name for each in summary.resources]
    if resource and resource not in names:
        there = ", ".join(sorted(names)) or "none"
        raise ResourceRefused(
            f"resource {resource!r} is not in {summary.manifest}; the resources there are: {there}"
        )
    looks: dict[AppEnvironment, EnvironmentLook] = {}
    found = []
    for name in [resource] if resource else names:
        try:
            app = contract.deployed_app(folder, name, settings.app_dependencies)
        except AppError as error:
            found.append(Inspected(name=name, problem=str(error)))
            continue
        if app.environment not in looks:
            looks[app.environment] = await _look(app, settings.to_env_settings())
        found.append(_inspected(app, settings))
    return Inspection(summary=summary, resources=tuple(found), environments=tuple(looks.values()))


def _inspected(app: DeployedApp, settings: Settings) -> Inspected:
    table = RouteTable.of(settings, app.routes)
    return Inspected(
        name=app.resource,
        app=app,
        timeouts=table.timeouts_text(),
        isolation=table.isolation_text(),
        warnings=(*app.oddities, *(table.warnings() if app.routes else ())),
    )


async def _look(app: DeployedApp, settings: EnvSettings) -> EnvironmentLook:
    environment, problem = app.environment, ""
    python, version, resolution = None, environment.python, None
    try:
        python, version = await interpreter_for(environment.python, settings)
        resolution = await resolve_beside(environment, settings)
    except EnvironmentFailure as failure:
        problem = str(failure)
    foreign = find_foreign(app.source, version) if version else []
    return EnvironmentLook(
        environment=environment,
        python=python,
        version=version,
        resolution=resolution,
        problem=problem,
        foreign=explain_foreign(foreign, version),
    )
