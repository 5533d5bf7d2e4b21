"""``flashpool health`` and ``flashpool stats``: print answers of a server's admin listener."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from .envs import SETTINGS

if TYPE_CHECKING:
    from flashpool.frontends.admin.client import AdminClient

_OK: Final = 200
_FAILED: Final = 1

_admin_option = click.option(
    "--admin",
    "url",
    metavar="URL",
    help="Admin listener to query, instead of FLASHPOOL_ADMIN_URL or the server on this machine.",
)


@click.command()
@_admin_option
@click.pass_context
def health(context: click.Context, url: str | None) -> None:
    """Check whether the server on this machine accepts calls, for a HEALTHCHECK.

    The exit status is 0 if it does. A server that is starting or draining does not.
    """
    from flashpool.frontends.admin.client import AdminClient, AdminUnreachable

    try:
        text, good = _health(AdminClient.find(context.meta[SETTINGS](), url))
    except AdminUnreachable as error:
        text, good = str(error), False
    click.echo(text, err=not good)
    if not good:
        sys.exit(_FAILED)


@click.command()
@_admin_option
@click.option("--json", "as_json", is_flag=True, help="Print the whole document of /stats.")
@click.pass_context
def stats(context: click.Context, url: str | None, as_json: bool) -> None:
    """Show what the server on this machine is doing."""
    from flashpool.frontends.admin.client import AdminClient, AdminRefused, AdminUnreachable

    try:
        client = AdminClient.find(context.meta[SETTINGS](), url)
        found = client.get("/stats")
    except (AdminRefused, AdminUnreachable) as error:
        click.secho(f"Error: {error}", fg="red", err=True)
        sys.exit(_FAILED)
    click.echo(json.dumps(found, indent=2) if as_json else _summary(client.url, found))


def _health(client: AdminClient) -> tuple[str, bool]:
    """Return a sentence, and whether calls start at once.

    Raises:
        AdminUnreachable: no listener answers.
    """
    status, body = client.status("/readyz")
    if status == _OK:
        return f"{client.url} takes calls", True
    return f"{client.url} accepts no calls: {_reasons(body) or f'status {status}'}", False


def _reasons(body: bytes) -> str:
    try:
        found = json.loads(body)
    except ValueError:
        return ""
    if not isinstance(found, dict):
        return ""
    reasons = found.get("reasons", [])
    return "; ".join(one["detail"] or one["cause"] for one in reasons) or str(
        found.get("detail", "")
    )


def _summary(url: str, found: dict[str, Any]) -> str:
    server, slots, queue = found["server"], found["slots"], found["queue"]
    state = "draining" if found["draining"] else "ready" if found["ready"] else "not ready"
    oldest = queue["oldest_age_s"]
    waits = "" if oldest is None else f", the oldest for {oldest:.1f} s"
    outcomes = ", ".join(f"{name} {count}" for name, count in sorted(found["outcomes"].items()))
    lines = [
        f"{url}: {server['mode']}, version {server['version']}, up {server['uptime_s']:.0f} s, {state}",
        f"slots busy  {slots['busy']} of {slots['total']}",
        f"waiting     {queue['depth']}{waits}; refused {queue['refused']}",
        f"ended       {found['calls']}{f': {outcomes}' if outcomes else ''}",
    ]
    for phase, one in found["latency"].items():
        lines.append(
            f"{phase:<11} median {one['p50_s']:.4f} s, 95 % {one['p95_s']:.4f} s, "
            f"99 % {one['p99_s']:.4f} s"
        )
    lines += [
        f"failed      {one['label']}: {one['cause']}: {one['error'].partition(chr(10))[0]}"
        for one in found["recent_failures"][-5:]
    ]
    return "\n".join(lines)
