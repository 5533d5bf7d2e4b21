"""Artifacts of `rp flash deploy` of SDK 2.0: the unchanged project, with its packages beside it.

    <folder>/runpod_manifest.json    resources, a list; each with its module and kind
    <folder>/env/                    the packages, including the client's own copy of the SDK
    <folder>/...                     the project's files

There are no generated handlers: a worker imports the module, and finds the resource there
(`_child.sdk.api_entry`, `queue_entry`). ``env`` is first on the path of the app, and never on that
of the server.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from flashpool.envs.resolving.spec import is_python_version
from flashpool.frontends.apps.app_environment import brought_packages
from flashpool.frontends.apps.contract import (
    AnswerForm,
    AppEntry,
    AppEnvironment,
    ArtifactSummary,
    DeployedApp,
    EntryKind,
    ResourceSummary,
)
from flashpool.frontends.apps.errors import ManifestRefused, ResourceRefused
from flashpool.frontends.apps.regular_files import read_regular

from . import sdk_variables

__all__ = ["SdkContract"]

_PACKAGES: Final = "env"
_MOST_BYTES: Final = 16 << 20
_API: Final = "api"
_QUEUE: Final = "queue"


class _SdkResource(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The fields of a resource that matter here; others are ignored."""

    kind: str
    name: str
    module: str = ""
    qualname: str = ""
    system_dependencies: list[str] | None = None


class _SdkManifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The manifest of a whole project."""

    version: int = 0
    app: str = ""
    python_version: str = ""
    resources: list[_SdkResource] = []
    excluded_packages: list[str] = []

    def resource(self, name: str) -> _SdkResource:
        """Return the resource of that name.

        Raises:
            ResourceRefused: the manifest lacks it.
        """
        for one in self.resources:
            if one.name == name:
                return one
        there = ", ".join(sorted(one.name for one in self.resources)) or "none"
        raise ResourceRefused(f"there is no resource {name!r} in the manifest; it has: {there}")


class SdkContract:
    """The second generation; see `contract.Contract`."""

    MANIFEST = "runpod_manifest.json"

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._concurrency = sdk_variables.concurrency(environ)

    def summary(self, folder: Path) -> ArtifactSummary:
        """Return a summary of the artifact for people."""
        manifest = self._read(folder)
        return ArtifactSummary(
            manifest=str(folder / self.MANIFEST),
            format=f"rp flash deploy, manifest version {manifest.version or 'not stated'}",
            project=manifest.app,
            built="",
            python=manifest.python_version,
            resources=tuple(
                ResourceSummary(
                    name=one.name,
                    kind="load-balanced" if one.kind == _API else one.kind,
                    functions=(one.qualname or one.name,),
                    problem=_problem(one),
                )
                for one in manifest.resources
            ),
        )

    def deployed_app(self, folder: Path, resource: str, further: Iterable[str]) -> DeployedApp:
        """Return one resource of the artifact, ready to be loaded."""
        manifest = self._read(folder)
        found = manifest.resource(resource)
        if problem := _problem(found):
            raise ResourceRefused(f"resource {resource!r}: {problem}")
        return DeployedApp(
            resource=found.name,
            source=folder,
            environment=_environment(folder, manifest, found, further),
            entry=self._entry(folder, found),
            answer=AnswerForm.HTTP if found.kind == _API else AnswerForm.JOB,
            functions=(),
        )

    def _entry(self, folder: Path, resource: _SdkResource) -> AppEntry:
        told = {
            "module": resource.module,
            "resource": resource.name,
            "paths": [str(folder / _PACKAGES)],
        }
        is_api = resource.kind == _API
        return AppEntry(
            kind=EntryKind.ASGI if is_api else EntryKind.HANDLER,
            file=folder / self.MANIFEST,
            attribute="app" if is_api else "handler",
            # The platform's setting; by default, a process runs one call of a function at a time.
            concurrency=self._concurrency,
            has_execute=False,
            module=sdk_variables.API_ENTRY if is_api else sdk_variables.QUEUE_ENTRY,
            variables={sdk_variables.ENTRY_VARIABLE: json.dumps(told)},
        )

    def _read(self, folder: Path) -> _SdkManifest:
        path = folder / self.MANIFEST
        try:
            found = msgspec.json.decode(read_regular(path, _MOST_BYTES), type=_SdkManifest)
        except OSError as error:
            raise ManifestRefused(f"{path} cannot be read: {error}") from error
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise ManifestRefused(f"{path} is not a manifest of SDK 2.0: {error}") from error
        if not found.resources:
            raise ManifestRefused(f"{path}, in the format of runpod 2, lists no resources")
        if found.python_version and not is_python_version(found.python_version):
            raise ManifestRefused(
                f"{path}: pythonVersion {found.python_version[:40]!r} is not a version of Python"
            )
        return found


def _problem(resource: _SdkResource) -> str:
    """Return why the resource cannot be served; empty if it can."""
    if resource.kind not in (_API, _QUEUE):
        return f"a resource of kind {resource.kind!r} is not deployed: its client starts it itself"
    if not all(part.isidentifier() for part in resource.module.split(".")):
        return f"its module {resource.module[:80]!r} is not the name of a module"
    return ""


def _environment(
    folder: Path, manifest: _SdkManifest, resource: _SdkResource, further: Iterable[str]
) -> AppEnvironment:
    """Return what the artifact lacks: packages that images contain, and system packages."""
    try:
        brought = brought_packages(os.listdir(folder / _PACKAGES))
    except OSError as error:
        raise ManifestRefused(f"{folder / _PACKAGES} cannot be read: {error}") from error
    wanted = (*manifest.excluded_packages, *further)
    return AppEnvironment(
        python=manifest.python_version,
        requirements=tuple(dict.fromkeys(wanted)),
        constraints=tuple(f"{name}=={brought[name]}" for name in sorted(brought)),
        system_packages=tuple(resource.system_dependencies or ()),
    )
