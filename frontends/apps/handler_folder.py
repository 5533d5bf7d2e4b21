"""A folder with handlers and no manifest, served by hand. No file lists the packages it needs.

<folder>/handler_<name>.py     `app`, an ASGI application; as in an artifact of `flash build`
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from .contract import (
    AnswerForm,
    AppEntry,
    AppEnvironment,
    ArtifactSummary,
    DeployedApp,
    EntryKind,
    ResourceSummary,
)
from .errors import ResourceRefused

__all__ = ["HandlerFolder"]

_PREFIX: Final = "handler_"
_SUFFIX: Final = ".py"


class HandlerFolder:
    """See `contract.Contract`; no manifest identifies such a folder."""

    MANIFEST = ""

    def summary(self, folder: Path) -> ArtifactSummary:
        return ArtifactSummary(
            manifest="",
            format="handlers without a manifest",
            project="",
            built="",
            python="",
            resources=tuple(
                ResourceSummary(name=name, kind="load-balanced", functions=(), problem="")
                for name in _names(folder)
            ),
        )

    def deployed_app(self, folder: Path, resource: str, further: Iterable[str]) -> DeployedApp:
        names = _names(folder)
        if resource not in names:
            raise ResourceRefused(
                f"There is no resource {resource!r}: "
                f"{folder} has handlers of: {', '.join(names) or 'none'}"
            )
        return DeployedApp(
            resource=resource,
            source=folder,
            environment=AppEnvironment(python="", requirements=tuple(further), constraints=()),
            entry=AppEntry(
                kind=EntryKind.ASGI,
                file=folder / f"{_PREFIX}{resource}{_SUFFIX}",
                attribute="app",
                concurrency=1,
                has_execute=True,
            ),
            answer=AnswerForm.HTTP,
            functions=(),
        )


def _names(folder: Path) -> list[str]:
    pattern = f"{_PREFIX}*{_SUFFIX}"
    return sorted(path.name[len(_PREFIX) : -len(_SUFFIX)] for path in folder.glob(pattern))
