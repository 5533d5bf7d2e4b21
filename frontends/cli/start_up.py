"""Steps that commands share: settings, the log, warnings, the banner, and exits with a message."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    import socket

    from flashpool.frontends.settings.table import Settings

#: Exit status for a call that failed, or an artifact that cannot be served. Click exits with 2 for
#: an invalid command line.
CALL_FAILED = 1
CANNOT_START = 2


def version() -> str:
    """Return the installed version of flashpool."""
    from importlib import metadata

    return metadata.version("flashpool")


def read_settings(**given: str | int | None) -> Settings:
    """Return the settings, with options of the command line; exit if they are invalid."""
    from flashpool.frontends.settings.table import Settings, SettingsError, unknown

    options = {name: str(value) for name, value in given.items() if value is not None}
    for sentence in unknown():
        click.secho(f"Warning: {sentence}", fg="yellow", err=True)
    try:
        return Settings.from_environ({**os.environ, **options})
    except SettingsError as error:
        die("\n".join(error.problems))


def read_settings_quietly() -> Settings:
    """Read the settings for a command that prints its own results: the log shows only errors."""
    settings = read_settings()
    configure_log("ERROR" if settings.origins["log_level"] == "default" else settings.log_level)
    return settings


def check_volume(settings: Settings) -> None:
    """Warn about problems of the volume before calls depend on it."""
    from flashpool.envs import StoreUnavailable
    from flashpool.envs.store import locations

    try:
        warnings = locations.check_volume(settings.to_env_settings())
    except StoreUnavailable as error:
        die(str(error))
    for sentence in warnings:
        click.secho(f"Warning: {sentence}", fg="yellow", err=True)


def die(message: str) -> NoReturn:
    """Print an error and exit."""
    for line in message.splitlines():
        click.secho(f"Error: {line}", fg="red", err=True)
    sys.exit(CANNOT_START)


def configure_log(level: str, form: str = "text", *, queue: bool = False) -> None:
    """Configure this process's log with a level and a form."""
    from flashpool.frontends.logs import setup

    setup.configure_log(level, form, queue=queue)
    setup.quieten_uvicorn()


def print_from_threads() -> None:
    """Write output in threads, so that a slow reader blocks no other work."""
    from flashpool.frontends.logs import writer

    writer.print_from_threads()


def announce_app(name: str, sock: socket.socket, admin: socket.socket | None) -> None:
    """Print to standard error which app is served, and where."""
    from flashpool.frontends.admin import stats_url
    from flashpool.frontends.http_server.listener import url
    from flashpool.frontends.lb.banner import app_banner

    click.echo(app_banner(version(), name, url(sock), stats_url(admin)), err=True)


def announce(settings: Settings, sock: socket.socket, admin: socket.socket | None) -> None:
    """Print to standard error what is served, and where."""
    from flashpool.frontends import modes
    from flashpool.frontends.admin import stats_url
    from flashpool.frontends.http_server.listener import url
    from flashpool.frontends.lb.banner import banner

    if resource := modes.resource(os.environ):
        announce_app(resource, sock, admin)
        return
    click.echo(banner(settings, version(), url(sock), stats_url(admin)), err=True)
