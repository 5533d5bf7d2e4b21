"""``flashpool ps | logs | stack | cancel``: the calls of a running server, here or elsewhere.

The commands use the server's admin listener (`admin.client` finds its address and token). Exit
status 1: the server refused, or the call does not exist; 2: no server answers.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import click

from .envs import SETTINGS

if TYPE_CHECKING:
    import http.client

    from flashpool.frontends.admin.client import AdminClient

REFUSED: Final = 1
UNREACHABLE: Final = 2
#: Ended calls that `ps` lists without ``--all``.
_RECENT: Final = 20

_admin = click.option(
    "--admin",
    "url",
    metavar="URL",
    help="Admin listener to query; default: that of the server on this machine.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_id = click.argument("call_id", metavar="ID")


@contextlib.contextmanager
def asked(context: click.Context, url: str | None) -> Iterator[AdminClient]:
    """Provide the client; exit with a message if the listener refuses or cannot be reached."""
    from flashpool.frontends.admin.client import AdminClient, AdminRefused, AdminUnreachable

    try:
        yield AdminClient.find(context.meta[SETTINGS](), url)
    except AdminRefused as error:
        click.secho(f"Error: {error}", fg="red", err=True)
        sys.exit(REFUSED)
    except (AdminUnreachable, TimeoutError) as error:
        click.secho(f"Error: {error}", fg="red", err=True)
        sys.exit(UNREACHABLE)


@click.command()
@_admin
@_json
@click.option("-a", "--all", "everything", is_flag=True, help="List all ended calls that are kept.")
@click.pass_context
def ps(context: click.Context, url: str | None, as_json: bool, everything: bool) -> None:
    """List calls: running and waiting ones, then the latest that ended."""
    with asked(context, url) as client:
        calls: list[dict[str, Any]] = client.get("/calls")["calls"]
    if as_json:
        click.echo(json.dumps(calls, indent=2))
        return
    active = [call for call in calls if call["state"] != "ended"]
    ended = [call for call in calls if call["state"] == "ended"]
    shown = ended if everything else ended[:_RECENT]
    from .tables import call_row, print_table

    headings = ("id", "function", "state", "seconds", "pid", "environment", "client's id")
    print_table(headings, [call_row(call) for call in (*active, *shown)])
    if len(shown) < len(ended):
        click.echo(f"{len(ended) - len(shown)} more have ended: --all lists them")


@click.command()
@_id
@_admin
@click.option("-f", "--follow", is_flag=True, help="Keep printing until the call ends.")
@click.pass_context
def logs(context: click.Context, call_id: str, url: str | None, follow: bool) -> None:
    """Print the output of a call, from the beginning of what is kept.

    The call's standard error goes to stderr, if the server captures it separately.
    """
    path = f"/calls/{quote(call_id, safe='')}/logs" + ("" if follow else "?follow=no")
    with asked(context, url) as client, client.stream(path) as answer:
        for kind, data in events(answer):
            if kind in ("output", "errors"):
                click.echo(data["text"], nl=False, err=kind == "errors")
            elif kind == "end" and data["outcome"] not in (None, "ok"):
                click.secho(
                    f"{data['outcome']}: {data['error'] or ''}".rstrip(), fg="red", err=True
                )


@click.command()
@_id
@_admin
@click.pass_context
def stack(context: click.Context, call_id: str, url: str | None) -> None:
    """Show where a call is now: the Python stacks of all threads of its process.

    The call is not interrupted, and its output does not change.
    """
    with asked(context, url) as client:
        found = client.get(f"/calls/{quote(call_id, safe='')}/stack")
    if found["problem"]:
        click.secho(f"No stacks: {found['problem']}", fg="yellow", err=True)
        sys.exit(REFUSED)
    click.echo(f"{found['label']} ({found['id']}), pid {found['pid']}")
    if found["beside"]:
        click.echo(f"calls that run beside it in the same process: {found['beside']}")
    click.echo(found["text"])


@click.command()
@_id
@_admin
@click.pass_context
def cancel(context: click.Context, call_id: str, url: str | None) -> None:
    """Cancel a waiting or running call, and stop its processes."""
    with asked(context, url) as client:
        found = client.ask("DELETE", f"/calls/{quote(call_id, safe='')}")
    click.echo(f"cancelled {found['id']}")


@click.command()
@_admin
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(0.2, 3600),
    default=1.0,
    help="Seconds between two updates; default 1.",
)
@click.pass_context
def top(context: click.Context, url: str | None, every_s: float) -> None:
    """Watch the calls of a server live.

    Keys: up and down choose a call, s sorts by another column, r reverses the order, x cancels the
    chosen call (y confirms), q quits. Without a terminal, print one snapshot.
    """
    from . import top as screen

    with asked(context, url) as client:
        screen.run(client, every_s)


def events(answer: http.client.HTTPResponse) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the kind and data of each server-sent event."""
    kind = ""
    for raw in answer:
        line = raw.decode("utf-8", "replace").rstrip("\n")
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield kind, json.loads(line.removeprefix("data: "))
