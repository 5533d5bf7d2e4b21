"""The ``flashpool`` command. What a subcommand needs is imported when it runs."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from . import admin, calls, replay
from .envs import SETTINGS, envs
from .inject import inject

if TYPE_CHECKING:
    import socket

    from flashpool.frontends.settings.table import Settings

#: Exit status of a call that failed, and of an artifact that cannot be served; click's own for a wrong command line is 2.
CALL_FAILED = 1
CANNOT_START = 2


def _print_version(context: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        click.echo(f"flashpool {_version()}")
        context.exit()


def _version() -> str:
    from importlib.metadata import version

    return version("flashpool")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)
@click.pass_context
def main(context: click.Context) -> None:
    """Run every call in a process of its own.

    Settings are FLASHPOOL_* variables: `flashpool settings` lists them.
    """
    context.meta[SETTINGS] = _settings_of_envs


main.add_command(envs)
main.add_command(admin.health)
main.add_command(admin.stats)
main.add_command(inject)
for _command in (calls.ps, calls.logs, calls.stack, calls.cancel, calls.top, replay.replay):
    main.add_command(_command)


@main.group()
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
    _print_from_threads()
    # Until the server minds its signals itself: nothing runs that would need a drain.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings = _settings(FLASHPOOL_HOST=host, FLASHPOOL_PORT=port)
    _configure_log(settings.log_level, settings.log_format)
    from flashpool.frontends import modes
    from flashpool.frontends.exposure import OpenServerError
    from flashpool.frontends.http_server.listener import ListenError
    from flashpool.frontends.lb import server
    from flashpool.frontends.server_process import TooFewDescriptors

    try:
        _check_volume(settings)
        server.serve_lb(
            settings,
            lambda sock, admin: _announce(settings, sock, admin),
            port_setting="FLASHPOOL_PORT" if port is None else "--port to another one",
        )
    except (ListenError, modes.ModeError, OpenServerError, TooFewDescriptors) as error:
        _die(str(error))


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
    _print_from_threads()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings = _settings(FLASHPOOL_HOST=host, FLASHPOOL_PORT=port)
    _configure_log(settings.log_level, settings.log_format)
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
            lambda sock, admin: _announce_app(resource or target.name, sock, admin),
            port_setting="FLASHPOOL_PORT" if port is None else "--port to another one",
        )
    except (AppError, ListenError, OpenServerError, TooFewDescriptors) as error:
        _die(str(error))


@serve.command("task")
def serve_task() -> None:
    """Serve the single task of a pod (`@app.task`) to clients that have RUNPOD_TASK_TOKEN."""
    _print_from_threads()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    from flashpool.frontends.contracts.sdk2 import task_server
    from flashpool.frontends.exposure import OpenServerError
    from flashpool.frontends.http_server.listener import ListenError, url
    from flashpool.frontends.server_process import TooFewDescriptors

    settings = _settings(**task_server.task_variables(os.environ))
    _configure_log(settings.log_level, settings.log_format)
    try:
        _check_volume(settings)
        task_server.serve_task(
            settings, lambda sock, _: click.echo(f"flashpool: a task on {url(sock)}", err=True)
        )
    except (ListenError, OpenServerError, TooFewDescriptors, task_server.TaskTokenMissing) as error:
        _die(str(error))


#: The SDK reads its flags itself, and knows more than are listed.
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
    _print_from_threads()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings = _settings()
    _configure_log(settings.log_level, settings.log_format, queue=True)
    from flashpool.frontends import modes
    from flashpool.frontends.exposure import OpenServerError
    from flashpool.frontends.http_server.listener import ListenError
    from flashpool.frontends.qb import entry
    from flashpool.frontends.qb.jobs import NothingRuns
    from flashpool.frontends.server_process import TooFewDescriptors
    from flashpool.pool.errors import EnvironmentStartFailed

    try:
        _check_volume(settings)
        entry.serve_qb(settings, list(flags))
    except NothingRuns as error:
        click.secho(f"Error: {error}", fg="red", err=True)
        sys.exit(CALL_FAILED)
    except (
        ListenError,
        OpenServerError,
        modes.ModeError,
        entry.UnknownSdk,
        entry.FlagError,
        TooFewDescriptors,
        EnvironmentStartFailed,
    ) as error:
        _die(str(error))


@serve.command("auto")
@click.pass_context
def serve_auto(context: click.Context) -> None:
    """Serve jobs of a queue or calls over HTTP, whichever this container is for.

    If a resource is named, its manifest decides. Otherwise FLASH_ENDPOINT_TYPE,
    RUNPOD_RUNTIME_KIND and RUNPOD_WEBHOOK_GET_JOB decide, in that order.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings = _settings()
    _configure_log(settings.log_level, settings.log_format)
    from flashpool.frontends import auto, modes
    from flashpool.frontends.apps.errors import AppError

    try:
        front_end = auto.choose(settings, os.environ)
    except (AppError, modes.ModeError) as error:
        _die(str(error))
    commands = {auto.FrontEnd.QUEUE: serve_qb, auto.FrontEnd.TASK: serve_task}
    context.invoke(commands.get(front_end, serve_lb))


@main.command()
@click.argument("target", metavar="FILE.py:FUNCTION")
@click.argument("arguments", metavar="[ARGS]", default="[]")
@click.option(
    "--timeout",
    type=click.FloatRange(0, 366 * 24 * 3600, min_open=True),
    help="Seconds the call may run; default: no limit.",
)
@click.option(
    "--memory-mb",
    type=click.IntRange(16, 1 << 30),
    help="MiB of memory the call's processes may use, 16 or more.",
)
@click.option(
    "--with",
    "requirements",
    multiple=True,
    metavar="REQUIREMENT",
    help="A package the function needs, such as 'numpy>=2'; may be repeated.",
)
def call(
    target: str,
    arguments: str,
    timeout: float | None,
    memory_mb: int | None,
    requirements: tuple[str, ...],
) -> None:
    """Run one function of a file, in a process of its own.

    ARGS is JSON: a list of arguments, an object of keyword arguments, or a single value.
    The function's output goes to stderr while it is written, its result to stdout as JSON. The
    exit status is 1 if the call failed.
    """
    settings = _settings()
    # What the pool does is of no interest here, only what becomes of the call.
    _configure_log("ERROR" if settings.origins["log_level"] == "default" else settings.log_level)
    from . import call

    try:
        request = call.read_request(target, arguments)
        call.check_requirements(requirements)
    except call.UsageError as error:
        raise click.UsageError(str(error)) from None
    outcome = call.run(
        request, settings, timeout_s=timeout, memory_mb=memory_mb, requirements=requirements
    )
    if outcome.ok:
        click.echo(outcome.body)
        return
    call.show_failure(outcome)
    sys.exit(CALL_FAILED)


@main.command()
@click.argument("target", metavar="DIR|ARTIFACT.tar.gz", type=click.Path(path_type=Path))
@click.option(
    "--resource",
    default="",
    envvar="FLASH_RESOURCE_NAME",
    help="The resource to look at, instead of FLASH_RESOURCE_NAME; all when neither is given.",
)
def check(target: Path, resource: str) -> None:
    """Report what an artifact of `flash build` contains and needs, without starting it.

    The report names the manifest, the version of Python, compiled modules for another Python, the
    packages to install beside the artifact's own, and routes with their limits. The exit status is
    1 if something keeps the artifact from being served.
    """
    settings = _settings()
    _configure_log("ERROR" if settings.origins["log_level"] == "default" else settings.log_level)
    from flashpool.frontends.apps.errors import AppError

    from . import check

    try:
        text, good = check.run(target, resource, settings)
    except AppError as error:
        click.secho(f"Error: {error}", fg="red", err=True)
        sys.exit(CALL_FAILED)
    click.echo(text)
    if not good:
        sys.exit(CALL_FAILED)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of a table.")
@click.option("--changed", is_flag=True, help="Show only settings that differ from their default.")
def settings(as_json: bool, changed: bool) -> None:
    """List every setting: value, origin, default, meaning."""
    values = _settings()
    from . import settings_table

    if as_json:
        click.echo(settings_table.as_json(values, changed=changed))
    elif changed and not settings_table.chosen(values, changed=True):
        click.echo("Every setting is at its default.")
    else:
        click.echo(settings_table.as_table(values, changed=changed))


def _settings(**given: str | int | None) -> Settings:
    """The settings in force, options of the command line included; exits when they are wrong."""
    from flashpool.frontends.settings.table import Settings, SettingsError, unknown

    options = {name: str(value) for name, value in given.items() if value is not None}
    for sentence in unknown():
        click.secho(f"Warning: {sentence}", fg="yellow", err=True)
    try:
        return Settings.from_environ({**os.environ, **options})
    except SettingsError as error:
        _die("\n".join(error.problems))


def _settings_of_envs() -> Settings:
    settings = _settings()
    # What the store does is told by the command itself.
    _configure_log("ERROR" if settings.origins["log_level"] == "default" else settings.log_level)
    return settings


def _check_volume(settings: Settings) -> None:
    """Say what is odd about the volume before calls depend on it."""
    from flashpool.envs import StoreUnavailable
    from flashpool.envs.store.locations import check_volume

    try:
        warnings = check_volume(settings.to_env_settings())
    except StoreUnavailable as error:
        _die(str(error))
    for sentence in warnings:
        click.secho(f"Warning: {sentence}", fg="yellow", err=True)


def _die(message: str) -> NoReturn:
    for line in message.splitlines():
        click.secho(f"Error: {line}", fg="red", err=True)
    sys.exit(CANNOT_START)


def _configure_log(level: str, form: str = "text", *, queue: bool = False) -> None:
    from flashpool.frontends.logs.setup import configure_log, quieten_uvicorn

    configure_log(level, form, queue=queue)
    quieten_uvicorn()


def _print_from_threads() -> None:
    from flashpool.frontends.logs.writer import print_from_threads

    print_from_threads()


def _announce_app(name: str, sock: socket.socket, admin: socket.socket | None) -> None:
    from flashpool.frontends.admin import stats_url
    from flashpool.frontends.http_server.listener import url
    from flashpool.frontends.lb.banner import app_banner

    click.echo(app_banner(_version(), name, url(sock), stats_url(admin)), err=True)


def _announce(settings: Settings, sock: socket.socket, admin: socket.socket | None) -> None:
    from flashpool.frontends import modes
    from flashpool.frontends.admin import stats_url
    from flashpool.frontends.http_server.listener import url
    from flashpool.frontends.lb.banner import banner

    if resource := modes.resource(os.environ):
        _announce_app(resource, sock, admin)
        return
    click.echo(banner(settings, _version(), url(sock), stats_url(admin)), err=True)
