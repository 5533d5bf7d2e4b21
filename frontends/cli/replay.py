"""``flashpool replay``: runs the request of a failed call again."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Final, NoReturn

import click

from .envs import SETTINGS

if TYPE_CHECKING:
    from flashpool.frontends.replay.kept import KeptRequest, KeptRequests
    from flashpool.frontends.settings.table import Settings

FAILED: Final = 1
NOT_RUN: Final = 2
_ERROR: Final = 100


@click.command()
@click.argument("call_id", metavar="[ID]", required=False)
@click.option(
    "--pdb",
    "debug",
    is_flag=True,
    help="Run the call in this terminal, and open the debugger where it raises.",
)
@click.option(
    "--env",
    "given",
    multiple=True,
    metavar="NAME=VALUE",
    help="An environment variable of the call; NAME alone copies it from this shell. May be repeated.",
)
@click.pass_context
def replay(
    context: click.Context, call_id: str | None, debug: bool, given: tuple[str, ...]
) -> None:
    """Run the kept request of a failed call again; without an ID, list the kept requests.

    Servers keep such requests if FLASHPOOL_KEEP_FAILED_MB is set. The call gets the packages and
    limits that it had. The values of its environment variables are not kept: pass them with --env.
    The exit status is 1 if the call fails again.
    """
    from flashpool.frontends.replay.kept import KeptRequests, NotKept, to_run

    settings: Settings = context.meta[SETTINGS]()
    folder = KeptRequests.of(settings)
    if call_id is None:
        _list(folder)
        return
    env = _variables(given)
    try:
        kept, body = folder.find(call_id)
    except (NotKept, OSError) as error:
        _die(str(error))
    _tell(kept, env)
    body = to_run(kept, body, env)
    if debug:
        sys.exit(_debug(settings, kept, body, env))
    _run(settings, kept, body)


def _list(folder: KeptRequests) -> None:
    from .tables import print_table

    rows = [
        (one.id, one.request_id, one.label, one.error_type, _when(one.at), one.pod)
        for one in folder.listed()
    ]
    if not rows:
        click.echo("No requests are kept. FLASHPOOL_KEEP_FAILED_MB has servers keep some.")
        return
    print_table(("id", "client's id", "function", "error", "when", "pod"), rows)


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _variables(given: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for one in given:
        name, is_set, value = one.partition("=")
        if not is_set and name not in os.environ:
            raise click.UsageError(f"--env {name}: this variable is not set in this shell")
        found[name] = value if is_set else os.environ[name]
    return found


def _tell(kept: KeptRequest, env: dict[str, str]) -> None:
    first = (kept.error.splitlines() or [""])[0][:_ERROR]
    click.secho(
        f"{kept.label} failed as {kept.error_type} at {_when(kept.at)} on {kept.pod}: {first}",
        dim=True,
        err=True,
    )
    if missing := [name for name in kept.env if name not in env]:
        click.secho(
            f"Warning: it had variables whose values are not kept: {', '.join(missing)}. "
            "Give them with --env NAME=VALUE",
            fg="yellow",
            err=True,
        )


def _run(settings: Settings, kept: KeptRequest, body: bytes) -> None:
    from . import call

    most = kept.limits.get("result_bytes")
    outcome = call.run_again(body, kept.label, settings, None if most is None else int(most))
    if outcome.ok:
        click.echo(f"It succeeded this time, in {outcome.receipt.run_s:.3f} s.")
        return
    call.show_failure(outcome)
    same = outcome.error_type == kept.error_type
    click.echo("It failed the same way." if same else "It failed in another way.", err=True)
    sys.exit(FAILED)


def _debug(settings: Settings, kept: KeptRequest, body: bytes, env: dict[str, str]) -> int:
    from flashpool.envs import EnvironmentFailure, Environments, Lease, Spec
    from flashpool.frontends.replay import under_debugger_path
    from flashpool.pool import _child
    from flashpool.pool.workers.ends.outcomes import runtime_packages

    async def debugged() -> int:
        async with Environments(settings.to_env_settings()) as store:
            lease: Lease | None = None
            python = settings.base_python
            if kept.lock:
                lease = await store.acquire(Spec(requirements=kept.lock))
                python = str(lease.environment.python)
            try:
                return await asyncio.to_thread(_under_debugger, python)
            finally:
                if lease is not None:
                    lease.release()

    def _under_debugger(python: str) -> int:
        child = os.path.dirname(_child.__file__)
        packages = ":".join(runtime_packages().values())
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            file.write(body)
            file.flush()
            command = [python, "-I", str(under_debugger_path()), child, packages, file.name]
            return subprocess.run(command, env={**os.environ, **env}, check=False).returncode

    try:
        return asyncio.run(debugged())
    except EnvironmentFailure as error:
        _die(str(error))


def _die(message: str) -> NoReturn:
    click.secho(f"Error: {message}", fg="red", err=True)
    sys.exit(NOT_RUN)
