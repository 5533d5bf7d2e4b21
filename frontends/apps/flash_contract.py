"""Artifacts of `flash build` of runpod-flash 1.x: packages, and a generated handler per resource.

    <folder>/flash_manifest.json       the resources
    <folder>/handler_<resource>.py     `handler` of a queue resource, `app` of a load-balanced one
    <folder>/runpod_flash/             the client, without its metadata
    <folder>/*.dist-info/              the packages that the artifact contains

The user's application replaces the generated one if ``FLASH_MAIN_FILE`` names its file,
and ``FLASH_APP_VARIABLE`` the variable in that file.
"""

from __future__ import annotations

import symtable
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from .app_environment import wanted_environment
from .contract import (
    AnswerForm,
    AppEntry,
    ArtifactSummary,
    DeclaredFunction,
    DeployedApp,
    EntryKind,
    ResourceSummary,
)
from .errors import AppError, ResourceRefused
from .manifest import NAME, Manifest, Resource, read_manifest
from .regular_files import read_regular
from .route_checks import declared_routes, oddities

__all__ = ["FlashContract"]

_HANDLERS: Final = "handler_*.py"
_MOST_LISTED: Final = 50
_MOST_BYTES: Final = 1 << 20


class FlashContract:
    """The first generation; see `contract.Contract`."""

    MANIFEST = NAME

    def __init__(self, environ: Mapping[str, str]) -> None:
        #: The endpoint's variables, which may name an application of the user.
        self._environ = environ

    def summary(self, folder: Path) -> ArtifactSummary:
        manifest = read_manifest(folder)
        return ArtifactSummary(
            manifest=manifest.path,
            format=f"flash build, manifest version {manifest.version or 'not stated'}",
            project=manifest.project_name,
            built=manifest.generated_at,
            python=manifest.python_version,
            resources=tuple(
                ResourceSummary(
                    name=each.name,
                    kind=_kind(each),
                    functions=tuple(function.name for function in each.functions),
                    problem=self._problem(folder, manifest, each.name),
                )
                for each in manifest.resources.values()
            ),
        )

    def _problem(self, folder: Path, manifest: Manifest, name: str) -> str:
        try:
            _entry(folder, manifest.resource(name), self._environ)
        except AppError as error:
            return str(error)
        return ""

    def deployed_app(self, folder: Path, resource: str, further: Iterable[str]) -> DeployedApp:
        manifest = read_manifest(folder)
        found = manifest.resource(resource)
        entry = _entry(folder, found, self._environ)
        return DeployedApp(
            resource=found.name,
            source=folder,
            environment=wanted_environment(folder, _python(manifest, found), further),
            entry=entry,
            answer=AnswerForm.JOB if entry.kind is EntryKind.HANDLER else AnswerForm.HTTP,
            functions=tuple(
                DeclaredFunction(
                    name=each.name,
                    module=each.module,
                    is_class=each.is_class,
                    methods=each.methods,
                )
                for each in found.functions
            ),
            routes=declared_routes(found.routes),
            oddities=tuple(oddities(found.routes)),
        )


def _kind(resource: Resource) -> str:
    if resource.is_client:
        return "client of an image of its own"
    return "load-balanced" if resource.is_load_balanced else "queue"


def _python(manifest: Manifest, resource: Resource) -> str:
    return resource.target_python_version or manifest.python_version


def _entry(folder: Path, resource: Resource, environ: Mapping[str, str]) -> AppEntry:
    if resource.is_client:
        raise ResourceRefused(
            f"resource {resource.name!r} belongs to a client (its endpoint has an image of its own) and has no handler "
            f"to serve; {_served(folder)}"
        )
    own = environ.get("FLASH_MAIN_FILE", "")
    if own and resource.is_load_balanced:
        return _checked(folder, resource, own, environ.get("FLASH_APP_VARIABLE") or "app", own=True)
    attribute = "app" if resource.is_load_balanced else "handler"
    return _checked(folder, resource, resource.handler_file, attribute, own=False)


def _checked(folder: Path, resource: Resource, name: str, attribute: str, *, own: bool) -> AppEntry:
    path = folder / name
    if not _is_below(path, folder) or (not own and path.parent != folder):
        raise ResourceRefused(
            f"resource {resource.name!r}: {name!r} is not a file of the app; {_served(folder)}"
        )
    if not path.is_file():
        raise ResourceRefused(f"resource {resource.name!r}: {path} is not there; {_served(folder)}")
    if not attribute.isidentifier():
        raise ResourceRefused(f"FLASH_APP_VARIABLE={attribute!r} is not a name")
    if not own and not _may_bind(path, attribute):
        raise ResourceRefused(
            f"resource {resource.name!r}: {path} has no {attribute!r}; {_served(folder)}"
        )
    return AppEntry(
        kind=EntryKind.ASGI if resource.is_load_balanced else EntryKind.HANDLER,
        file=path,
        attribute=attribute,
        concurrency=resource.max_concurrency,
        has_execute=resource.is_load_balanced and not own,
    )


def _is_below(path: Path, folder: Path) -> bool:
    """Return whether a path is inside the folder, by its name and after links are resolved."""
    return ".." not in path.parts and path.resolve().is_relative_to(folder.resolve())


def _may_bind(path: Path, name: str) -> bool:
    """Return whether the source of a module may define the name; True if uncertain."""
    try:
        source = read_regular(path, _MOST_BYTES).decode()
        table = symtable.symtable(source, str(path), "exec")
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return True  # for example, the source is for a newer Python than the server's
    if "import *" in source or "globals" in source:
        return True
    try:
        symbol = table.lookup(name)
    except KeyError:
        return False
    return symbol.is_assigned() or symbol.is_imported()


def _served(folder: Path) -> str:
    names = sorted(path.name for path in folder.glob(_HANDLERS))
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return f"the handlers there are: {', '.join(names[:_MOST_LISTED]) or 'none'}{more}"
