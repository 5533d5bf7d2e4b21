"""``flashpool serve lb | app | task | qb | auto``: the servers. Their modules are imported late."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import click

from . import start_up


@click.group()
def serve() -> None:
    """Serve calls to clients."""


@serve.command("lb")
@click.option("--host", help="Address to listen on, instead of FLASHPOOL_HOST.")
@click.option("--port", type=int, help="Port to listen on, instead of FLASHPOOL_PORT.")
def serve_lb(host: str | None, port: int | None) -> None:
    """Serve POST /execute, GET /ping and GET /health, or a deployed app.

    If FLASH_RESOURCE_NAME names a resource, its app is served, from the archive FLASHPOOL_ARTIFACT.

    The first SIGTERM or SIGINT lets running calls finish, the second stops them.
    """
    start_up.print_from_threads()
    # Until the server handles signals itself, an exit needs no drain.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings = start_up.read_settings(FLASHPOOL_HOST=host, FLASHPOOL_PORT=port)
    start_up.configure_log(settings.log_level, settings.log_format)
    from flashpool.frontends import modes
    from flashpool.frontends.exposure import OpenServerError
    from flashpool.frontends.http_server.listener import ListenError
    from flashpool.frontends.lb import server
    from flashpool.frontends.server_process import TooFewDescriptors

    try:
        start_up.check_volume(settings)
        server.serve_lb(
            settings,
            lambda sock, admin: start_up.announce(settings, sock, admin),
            port_setting="FLASHPOOL_PORT" if port is None else "--port to another one",
        )
    except (ListenError, modes.ModeError, OpenServerError, TooFewDescriptors) as error:
        start_up.die(str(error))


@serve.command("app")
@click.argument(
    "target", metavar="DIR|ARTIFACT.tar.gz", type=click.Path(path_type=Path, exists=True)
)
@click.option("--resource", default="", help="Resource to serve, if there are several.")
@click.option("--host", help="Address to listen on, instead of FLASHPOOL_HOST.")
@click.option("--port", type=int, help="Port to listen on, instead of FLASHPOOL_PORT.")
def serve_app(target: Path, resource: str, host: str | None, port: int | None) -> None:
    """Serve the routes of a deployed app: an artifact of `flash build`, packed or unpacked.

    The app runs in workers of its own. GET /ping says whether it is loaded.
    """
    start_up.print_from_threads()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings = start_up.read_settings(FLASHPOOL_HOST=host, FLASHPOOL_PORT=port)
    start_up.configure_log(settings.log_level, settings.log_format)
    from flashpool.frontends.apps.by_hand import chosen_resource, contract_by_hand
    from flashpool.frontends.apps.errors import AppError
    from flashpool.frontends.apps.preparation import AppSource
    from flashpool.frontends.exposure import OpenServerError
    from flashpool.frontends.http_server.listener import ListenError
    from flashpool.frontends.lb import server
    from flashpool.frontends.server_process import TooFewDescriptors

    try:
        if target.is_dir():
            resource = chosen_resource(contract_by_hand(target, os.environ), target, resource)
        server.serve_app(
            settings,
            AppSource(settings, os.environ, resource, by_hand=target),
            lambda sock, admin: start_up.announce_app(resource or target.name, sock, admin),
            port_setting="FLASHPOOL_PORT" if port is None else "--port to another one",
        )
    except (AppError, ListenError, OpenServerError, TooFewDescriptors) as error:
        start_up.die(str(error))


@serve.command("task")
def serve_task() -> None:
    """Serve the single task of a pod (`@app.task`) to clients that have RUNPOD_TASK_TOKEN."""
    start_up.print_from_threads()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    from flashpool.frontends.contracts.sdk2 import task_server
    from flashpool.frontends.exposure import OpenServerError
    from flashpool.frontends.http_server.listener import ListenError, url
    from flashpool.frontends.server_process import TooFewDescriptors

    settings = start_up.read_settings(**task_server.task_variables(os.environ))
    start_up.configure_log(settings.log_level, settings.log_format)
    try:
        start_up.check_volume(settings)
        task_server.serve_task(
            settings, lambda sock, _: click.echo(f"flashpool: a task on {url(sock)}", err=True)
        )
    except (ListenError, OpenServerError, TooFewDescriptors, task_server.TaskTokenMissing) as error:
        start_up.die(str(error))


#: The SDK parses its flags itself, and knows more flags than these.
_SDK_FLAGS = """\b
Flags of the SDK:
  --test_input JSON           Run one job, '{"input": {...}}', and exit.
  --rp_serve_api              Serve the SDK's own API, without a cloud.
  --rp_api_host HOST          Address of that API; default localhost.
  --rp_api_port PORT          Port of that API; default 8000.
  --rp_api_concurrency N      Ignored; FLASHPOOL_SLOTS jobs run at once.
  --rp_log_level LEVEL        ERROR, WARN, INFO or DEBUG.
  --rp_debugger               Add the SDK's debugger output.
"""


@serve.command("qb", epilog=_SDK_FLAGS, context_settings={"ignore_unknown_options": True})
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def serve_qb(flags: tuple[str, ...]) -> None:
    """Serve the jobs of a RunPod queue.

    The platform sets RUNPOD_WEBHOOK_GET_JOB and related variables to the addresses of the queue.
    The first SIGTERM or SIGINT lets running jobs finish for FLASHPOOL_DRAIN_S seconds, the second
    stops them; each job is reported.
    """
    start_up.print_from_threads()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings = start_up.read_settings()
    start_up.configure_log(settings.log_level, settings.log_format, queue=True)
    from flashpool.frontends import modes
    from flashpool.frontends.exposure import OpenServerError
    from flashpool.frontends.http_server.listener import ListenError
    from flashpool.frontends.qb import entry
    from flashpool.frontends.qb.jobs import NothingRuns
    from flashpool.frontends.server_process import TooFewDescriptors
    from flashpool.pool.errors import EnvironmentStartFailed

    try:
        start_up.check_volume(settings)
        entry.serve_qb(settings, list(flags))
    except NothingRuns as error:
        click.secho(f"Error: {error}", fg="red", err=True)
        sys.exit(start_up.CALL_FAILED)
    except (
        ListenError,
        OpenServerError,
        modes.ModeError,
        entry.UnknownSdk,
        entry.FlagError,
        TooFewDescriptors,
        EnvironmentStartFailed,
    ) as error:
        start_up.die(str(error))


@serve.command("auto")
@click.pass_context
def serve_auto(context: click.Context) -> None:
    """Serve jobs of a queue or calls over HTTP, whichever this container is for.

    If a resource is named, its manifest decides. Otherwise FLASH_ENDPOINT_TYPE,
    RUNPOD_RUNTIME_KIND and RUNPOD_WEBHOOK_GET_JOB decide, in that order.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings = start_up.read_settings()
    start_up.configure_log(settings.log_level, settings.log_format)
    from flashpool.frontends import auto, modes
    from flashpool.frontends.apps.errors import AppError

    try:
        front_end = auto.choose(settings, os.environ)
    except (AppError, modes.ModeError) as error:
        start_up.die(str(error))
    commands = {auto.FrontEnd.QUEUE: serve_qb, auto.FrontEnd.TASK: serve_task}
    context.invoke(commands.get(front_end, serve_lb))
