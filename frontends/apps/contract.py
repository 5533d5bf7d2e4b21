"""The seam between generations of the client: what every artifact becomes, whatever it looks like.

    folder + resource --a Contract--> DeployedApp
                                        source       the folder that goes on sys.path
                                        environment  what the folder lacks, and the Python it wants
                                        entry        a file and a name in it
                                        answer       the form its answers take

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
    """Where execution begins. The file is loaded by its path: its name may be no valid
    module name.
    """

    kind: EntryKind
    file: Path
    attribute: str
    #: Jobs that run together, at most; of no meaning for HTTP.
    concurrency: int
    #: Whether the application offers ``POST /execute``, which is removed from it.
    has_execute: bool
    #: A module of the runtime's that finds the application, in place of the file.
    module: str = ""
    #: Variables that configure that module; it removes them from the environment.
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppEnvironment:
    """The key of an environment: two apps that agree in all of this share one."""

    #: Empty: any.
    python: str
    requirements: tuple[str, ...]
    #: ``name==version`` of each package that the folder brings.
    constraints: tuple[str, ...]
    #: What apt installs on this machine.
    system_packages: tuple[str, ...] = ()

    @property
    def brought(self) -> frozenset[str]:
        """Names of the packages that the folder contains, which are not installed again."""
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
    #: The routes that the artifact declares; the app that is loaded is right where it differs.
    routes: tuple[AppRoute, ...] = ()
    #: A sentence for each thing that is odd, and refuses nothing.
    oddities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceSummary:
    """One line of a list."""

    name: str
    kind: str
    functions: tuple[str, ...]
    #: Why it cannot be served; empty when nothing stands in the way.
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

    #: The file by which its artifacts are known.
    MANIFEST: str

    def summary(self, folder: Path) -> ArtifactSummary:
        """Tell what there is; blocking, and raises as `deployed_app` does."""

    def deployed_app(self, folder: Path, resource: str, further: Iterable[str]) -> DeployedApp:
        """Read the folder; blocking. `further` are requirements of the operator's.

        Raises:
            AppError: the resource cannot be served; the message says what would change that.
        """
