"""``flashpool check``: shows an artifact on a terminal, without running its code."""

from __future__ import annotations

import asyncio
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path

from flashpool.frontends.apps.contract import ArtifactSummary, DeployedApp, EntryKind
from flashpool.frontends.apps.inspection import (
    EnvironmentLook,
    Inspected,
    Inspection,
    inspect,
    unpacked,
)
from flashpool.frontends.settings.table import Settings

_INDENT = 13
_WIDTH = 100


def run(target: Path, resource: str, settings: Settings) -> tuple[str, bool]:
    """Return the text, and whether every resource in it can be served.

    Raises:
        AppError: the archive or its manifest cannot be read, or the resource is not in it.
    """
    with unpacked(target, settings) as folder:
        found = asyncio.run(inspect(folder, settings, os.environ, resource))
        return "\n".join(_lines(found, folder)), found.is_good


def _lines(found: Inspection, folder: Path) -> Iterator[str]:
    yield from _summary(found.summary, folder)
    for each in found.resources:
        yield ""
        yield f"resource {each.name}"
        yield from _resource(each, folder)
    for look in found.environments:
        users = [
            each.name
            for each in found.resources
            if each.app is not None and each.app.environment == look.environment
        ]
        yield ""
        yield f"environment of {', '.join(users)}"
        yield from _environment(look)


def _summary(summary: ArtifactSummary, folder: Path) -> Iterator[str]:
    manifest = Path(summary.manifest).relative_to(folder)
    yield from _row("manifest", f"{manifest} ({summary.format})")
    yield from _row(
        "project", f"{summary.project or 'not named'}, built {summary.built or 'some time'}"
    )
    yield from _row("python", summary.python or "not stated: the image's own")
    for each in summary.resources:
        yield from _row(
            "", f"{each.name}: {each.kind}, {', '.join(each.functions) or 'no functions'}"
        )


def _resource(found: Inspected, folder: Path) -> Iterator[str]:
    if found.problem:
        yield from _row("problem", found.problem)
    if found.app is None:
        return
    yield from _row("entry", _entry(found.app, folder))
    if found.app.entry.kind is EntryKind.ASGI:
        yield from _row("routes", ", ".join(map(str, found.app.routes)) or "none declared")
        yield from _row("limits", found.timeouts)
        yield from _row("isolation", found.isolation)
    for warning in found.warnings:
        yield from _row("warning", warning)


def _environment(look: EnvironmentLook) -> Iterator[str]:
    wanted = look.environment.python or "any"
    yield from _row(
        "python", f"{wanted}: {look.python} ({look.version})" if look.python else wanted
    )
    yield from _row("brings", ", ".join(look.environment.constraints) or "no packages")
    yield from _row("compiled", look.foreign or "nothing for another Python or platform")
    yield from _row("lacks", ", ".join(look.environment.requirements))
    if look.environment.system_packages:
        yield from _row("apt", ", ".join(look.environment.system_packages))
    if look.resolution is not None:
        lines = look.resolution.lines
        yield from _row("resolution", f"{len(lines)} packages: {', '.join(lines)}")
    if look.problem:
        yield from _row("problem", look.problem)


def _entry(app: DeployedApp, folder: Path) -> str:
    where = f"{app.entry.attribute} in {app.entry.file.relative_to(folder)}"
    if app.entry.kind is EntryKind.HANDLER:
        return f"{where}, for jobs; {app.entry.concurrency} at a time"
    taken = "; its POST /execute is taken out" if app.entry.has_execute else ""
    return f"{where}, an ASGI application{taken}"


def _row(name: str, text: str) -> Iterator[str]:
    first = f"  {name}".ljust(_INDENT)
    for line in text.splitlines() or [""]:
        yield textwrap.fill(
            line,
            _WIDTH,
            initial_indent=first,
            subsequent_indent=" " * _INDENT,
            break_long_words=False,
            break_on_hyphens=False,
        )
        first = " " * _INDENT
