"""``flashpool envs``: the store of environments on a terminal.

`flashpool.envs.operations` does the work; this module has the arguments, progress (stderr) and
results (stdout, as tables or with ``--json``). Exit status 1: something failed.
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from flashpool.envs import Environments, EnvSettings
    from flashpool.envs.operations import Built
    from flashpool.frontends.settings.table import Settings

T = TypeVar("T")

FAILED: Final = 1
_SHORT: Final = 12
#: Most characters of a list of package names.
_NAMES: Final = 60
_MB: Final = 1024 * 1024

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_python = click.option(
    "--python",
    metavar="VERSION",
    help="Version of Python, such as '3.12'; default: that of the base.",
)
_requirements = click.argument("requirements", nargs=-1, required=True, metavar="REQUIREMENT...")


@click.group()
@click.pass_context
def envs(context: click.Context) -> None:
    """List, build, check and delete environments of packages.

    Environments are stored on FLASHPOOL_VOLUME, or in the user's cache directory.
    """
    # The table of settings comes from the command that this group belongs to.
    context.obj = context.meta[SETTINGS]()


#: Key under which the parent command passes the function that reads the settings.
SETTINGS: Final = "flashpool.settings"


@envs.command("ls")
@_json
@click.pass_obj
def list_(settings: Settings, as_json: bool) -> None:
    """List environments, the least recently used first."""
    from flashpool.envs import operations

    missing = _missing(settings)
    listing = _look(settings, operations.listing)
    if missing:
        listing = replace(listing, root=Path(missing), total_bytes=0)
    if as_json:
        _print_json(asdict(listing))
        return
    rows = [
        (
            row.digest[:_SHORT],
            row.mode,
            _named(row.packages, row.names),
            _size(row.bytes),
            _ago(row.last_used),
            str(row.users),
            "yes" if row.archived else "no",
        )
        for row in listing.environments
    ]
    rows += [(digest[:_SHORT], "", "", "", "", "", "only") for digest in listing.archived_only]
    _print_table(("digest", "mode", "packages", "size", "used", "users", "archived"), rows)
    quota = f" of {_size(listing.quota)}" if listing.quota else ""
    alone = sum(row.bytes for row in listing.environments)
    # Each size includes files shared with other environments or uv's cache; the disk has them once.
    total = f"{_size(listing.total_bytes)}{quota} with uv's cache, shared files once"
    where = f"in {listing.root} ({listing.store_mode} mode)"
    click.echo(f"environments: {_size(alone)}, each by itself; on disk: {total}, {where}")
    if missing or listing.note:
        click.echo("there is no environment yet" if missing else listing.note)


@envs.command()
@_requirements
@_python
@click.pass_obj
def build(settings: Settings, requirements: tuple[str, ...], python: str | None) -> None:
    """Build the environment for these requirements, unless it exists."""
    from flashpool.envs import operations

    async def build_it(store: Environments) -> Built:
        return await operations.build(store, requirements, python=python, progress=_progress)

    _finish([_run(settings, build_it)])


@envs.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.pass_obj
def warm(settings: Settings, file: Path) -> None:
    """Build every set of requirements in FILE.

    FILE holds one requirement per line; an empty line separates two sets.
    """
    from flashpool.envs import operations

    _finish(_run(settings, lambda store: operations.warm(store, file, progress=_progress)))


@envs.command()
@click.argument("digest")
@_json
@click.pass_obj
def show(settings: Settings, digest: str, as_json: bool) -> None:
    """Show one environment; the beginning of its digest is enough."""
    from flashpool.envs import operations

    shown = _look(settings, lambda store: operations.show(store, digest))
    if as_json:
        _print_json(asdict(shown))
        return
    click.echo(f"digest    {_plain(shown.facts.digest)}\npath      {shown.path}")
    click.echo(f"mode      {shown.facts.mode}{_because(shown.facts.reason)}")
    click.echo(f"size      {_size(shown.facts.bytes)}")
    click.echo(f"used      {_ago(shown.last_used)}, processes that use it now: {len(shown.users)}")
    click.echo(f"sealed    {'yes' if shown.sealed else 'no'}")
    click.echo(f"archived  {'yes' if shown.archived else 'no'}")
    click.echo(f"preloads  {len(shown.preloads)} modules")
    _print_decisions(shown.facts.decisions)


@envs.command()
@_requirements
@_python
@_json
@click.pass_obj
def explain(
    settings: Settings, requirements: tuple[str, ...], python: str | None, as_json: bool
) -> None:
    """Explain where each package would come from, and why; build nothing."""
    from flashpool.envs import operations

    found = _look(settings, lambda store: operations.explain(store, requirements, python=python))
    if as_json:
        _print_json(asdict(found))
        return
    click.echo(f"{found.digest}  {found.mode}, {found.present}{_because(found.reason)}")
    _print_decisions(found.decisions)


@envs.command()
@click.option(
    "--all", "everything", is_flag=True, help="Evict every environment that is not in use."
)
@click.pass_obj
def gc(settings: Settings, everything: bool) -> None:
    """Delete what crashes left behind, and evict environments until the limits are met."""
    from flashpool.envs import operations

    evicted = _look(settings, lambda store: operations.gc(store, everything=everything))
    for digest in evicted.digests:
        click.echo(f"deleted {digest}")
    for digest in evicted.wanted:
        click.echo(f"kept {digest}: it is in use")
    if evicted.cache_cleaned:
        click.echo("emptied uv's cache")
    if not (evicted.digests or evicted.wanted or evicted.cache_cleaned):
        click.echo("nothing to delete")


@envs.command()
@click.argument("digests", nargs=-1, metavar="[DIGEST]...")
@click.pass_obj
def verify(settings: Settings, digests: tuple[str, ...]) -> None:
    """Compare environments with what was published.

    Without a digest, compare all of them.
    """
    from flashpool.envs import operations

    checks = _look(settings, lambda store: operations.verify(store, digests))
    if not checks:
        click.echo("no environments to verify")
    for check in checks:
        kind = "checksums" if check.sealed else "sizes only"
        click.echo(f"{check.digest}  {_plain(check.problem) or f'good ({kind})'}")
    if any(check.problem for check in checks):
        sys.exit(FAILED)


@envs.command()
@click.argument("digests", nargs=-1, required=True, metavar="DIGEST...")
@click.pass_obj
def rm(settings: Settings, digests: tuple[str, ...]) -> None:
    """Delete environments, and their archives."""
    from flashpool.envs import operations

    async def remove_all(store: Environments) -> list[bool]:
        return [await operations.remove(store, digest) for digest in digests]

    done = _look(settings, remove_all)
    for digest, removed in zip(digests, done, strict=True):
        click.echo(f"{'deleted' if removed else 'kept, it is in use:'} {digest}")
    if not all(done):
        sys.exit(FAILED)


# Shared by these commands.


def _run(settings: Settings, act: Callable[[Environments], Coroutine[Any, Any, T]]) -> T:
    return _with(settings.to_env_settings(), act)


def _look(settings: Settings, act: Callable[[Environments], Coroutine[Any, Any, T]]) -> T:
    """Open the store for reading: missing directories are not created."""
    from flashpool.envs.store.locations import without_making

    with tempfile.TemporaryDirectory(prefix="flashpool-look-") as spare:
        return _with(without_making(settings.to_env_settings(), Path(spare)), act)


def _missing(settings: Settings) -> str:
    """Return the path of the store if it does not exist, else an empty string."""
    from flashpool.envs.store.locations import missing_store

    return str(missing_store(settings.to_env_settings()) or "")


def _with(settings: EnvSettings, act: Callable[[Environments], Coroutine[Any, Any, T]]) -> T:
    from flashpool.envs import EnvironmentFailure, Environments

    async def main() -> T:
        async with Environments(settings) as store:
            return await act(store)

    try:
        return asyncio.run(main())
    except EnvironmentFailure as failure:
        _print_error(str(failure))
        sys.exit(FAILED)


def _finish(built: Iterable[Built]) -> None:
    failed = False
    for one in built:
        names = " ".join(one.requirements)
        if one.environment is None:
            failed = True
            _print_error(f"{names}: {one.failure}")
            continue
        seconds = one.environment.seconds
        total = seconds.resolve + seconds.fetch + seconds.build
        click.echo(f"{one.environment.digest}  {one.environment.origin} in {total:.1f} s  {names}")
    if failed:
        sys.exit(FAILED)


def _progress(line: str) -> None:
    click.secho(line, dim=True, err=True)


def _named(packages: int, names: tuple[str, ...]) -> str:
    """Return the number of packages, and as many of their names as fit a cell."""
    text = ", ".join(names)
    return f"{packages}: {text if len(text) <= _NAMES else text[:_NAMES] + ' ...'}"


def _print_error(text: str) -> None:
    click.secho(f"Error: {text}", fg="red", err=True)


def _print_json(value: Any) -> None:
    # ASCII: texts on the volume may contain anything, such as invalid UTF-8.
    click.echo(json.dumps(value, indent=2, default=str))


def _print_decisions(decisions: Iterable[Any]) -> None:
    rows = [(one.name, one.version, one.where, one.why) for one in decisions]
    _print_table(("package", "version", "from", "why"), rows)


def _print_table(headings: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_plain(cell)) for cell in row))
    terminal, text = Console(), io.StringIO()
    Console(file=text, width=terminal.width if terminal.is_terminal else 160).print(table)
    click.echo(text.getvalue().rstrip())


def _because(reason: str) -> str:
    return f": {_plain(reason)}" if reason else ""


def _plain(text: str) -> str:
    """Replace control characters of a text, which others may have written on the volume."""
    shown = (
        one if one.isprintable() or one == "\n" else "\N{REPLACEMENT CHARACTER}" for one in text
    )
    return "".join(shown)


def _size(number: int) -> str:
    return f"{number / _MB:.1f} MB"


def _ago(moment: float) -> str:
    if not moment:
        return "never"
    seconds = max(0.0, time.time() - moment)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
