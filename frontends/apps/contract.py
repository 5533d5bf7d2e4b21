"""The seam between generations of the client: every artifact becomes a `DeployedApp`.

    folder + resource --a Contract--> DeployedApp
                                        source       the folder that goes on sys.path
                                        environment  packages that the folder lacks, and a Python
                                        entry        a file and a name in that file
                                        answer       the form of its answers

Code that runs, limits, logs and streams an app knows these four values and no format. A contract is
one module with a class such as `Contract`; only `generations` chooses between contracts.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from .route_limits import AppRoute

__all__ = [
    "AnswerForm",
    "AppEntry",
    "AppEnvironment",
    "ArtifactSummary",
    "Contract",
    "DeclaredFunction",
    "DeployedApp",
    "EntryKind",
    "ResourceSummary",
]


class EntryKind(enum.Enum):
    """What kind of object an entry's name refers to."""

    #: A function that takes a job.
    HANDLER = "handler"
    #: An ASGI application.
    ASGI = "asgi"


class AnswerForm(enum.Enum):
    """The form of an answer."""

    #: The ASGI messages of the application, as they come.
    HTTP = "http"
    #: The report of a job: output, or error.
    JOB = "job"


@dataclass(frozen=True, slots=True, kw_only=True)
class AppEntry:
    """Where execution begins. The file is loaded by path: its name may not be an identifier."""

    kind: EntryKind
    file: Path
    attribute: str
    #: Most jobs that run at the same time; unused for HTTP.
    concurrency: int
    #: Whether the application offers ``POST /execute``, which is removed from it.
    has_execute: bool
    #: A module of the worker's runtime that finds the application, in place of the file.
    module: str = ""
    #: Variables that configure that module, which removes them from the environment.
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppEnvironment:
    """The key of an environment: two apps with equal keys share one environment."""

    #: A version; empty: any.
    python: str
    requirements: tuple[str, ...]
    #: ``name==version`` of each package that the folder contains.
    constraints: tuple[str, ...]
    #: Packages that apt installs on this machine.
    system_packages: tuple[str, ...] = ()

    @property
    def brought(self) -> frozenset[str]:
        """Return the names of the packages that the folder contains."""
        return frozenset(line.partition("==")[0] for line in self.constraints)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredFunction:
    """A function or class that the resource serves, for code that lists or wraps it."""

    name: str
    module: str
    is_class: bool
    methods: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployedApp:
    """One resource of an artifact, ready to be loaded."""

    resource: str
    source: Path
    environment: AppEnvironment
    entry: AppEntry
    answer: AnswerForm
    functions: tuple[DeclaredFunction, ...]
    #: The routes that the artifact declares; where the loaded app differs, the app is right.
    routes: tuple[AppRoute, ...] = ()
    #: A sentence for each oddity that does not prevent serving.
    oddities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceSummary:
    """A resource, as listed before any of its code runs."""

    name: str
    kind: str
    functions: tuple[str, ...]
    #: Why the resource cannot be served; empty if it can.
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactSummary:
    """Facts about an artifact that can be shown before any of its code runs."""

    manifest: str
    format: str
    project: str
    built: str
    python: str
    resources: tuple[ResourceSummary, ...]


class Contract(Protocol):
    """The interface of a module for one generation of the client."""

    #: The file that identifies artifacts of this generation.
    MANIFEST: str

    def summary(self, folder: Path) -> ArtifactSummary:
        """Return a summary of the folder; blocking; raises like `deployed_app`."""

    def deployed_app(self, folder: Path, resource: str, further: Iterable[str]) -> DeployedApp:
        """Read the folder; blocking. ``further``: requirements that the operator adds.

        Raises:
            AppError: the resource cannot be served; the message says how to change that.
        """
