"""The seam between generations of the client: what every artifact becomes, whatever it looks like.

    folder + resource --a Contract--> DeployedApp
                                        source       the folder that goes on sys.path
                                        environment  what the folder lacks, and the Python it wants
                                        entry        a file and a name in it
                                        answer       the form its answers take

What runs, limits, logs and streams an app knows these four and no format. A contract is one module
with a class such as `Contract`; `generations` is the one place that chooses.
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
    """What the name in the entry's file stands for."""

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
    """Where execution begins. The file is loaded by its path: its name need not be a module's."""

    kind: EntryKind
    file: Path
    attribute: str
    #: Jobs that run together, at most; of no meaning for HTTP.
    concurrency: int
    #: Whether the application offers ``POST /execute``, which has to be taken out of it.
    has_execute: bool
    #: A module of the runtime's that finds the application, in place of the file.
    module: str = ""
    #: What that module is told, in variables that it takes away.
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppEnvironment:
    """The key of an environment: two apps that agree in all of this share one."""

    #: Empty: any.
    python: str
    requirements: tuple[str, ...]
    #: ``name==version`` of each package that the folder brings.
    constraints: tuple[str, ...]

    @property
    def brought(self) -> frozenset[str]:
        """Names of the packages that the folder brings, and that are not installed beside it."""
        return frozenset(line.partition("==")[0] for line in self.constraints)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredFunction:
    """A function or class that the resource serves, for whoever lists or wraps it."""

    name: str
    module: str
    is_class: bool
    methods: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployedApp:
    """One resource of one artifact, ready to be loaded."""

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
    """What people want to know of an artifact before anything of it runs."""

    manifest: str
    format: str
    project: str
    built: str
    python: str
    resources: tuple[ResourceSummary, ...]


class Contract(Protocol):
    """What a module of a generation provides."""

    #: The file by which its artifacts are known.
    MANIFEST: str

    def summary(self, folder: Path) -> ArtifactSummary:
        """Tell what there is; blocking, and raises as `deployed_app` does."""

    def deployed_app(self, folder: Path, resource: str, further: Iterable[str]) -> DeployedApp:
        """Read the folder; blocking. `further` are requirements of the operator's.

        Raises:
            AppError: the resource cannot be served; the message says what would change that.
        """
