"""The ``flashpool`` command. Modules of a subcommand are imported when it runs."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from . import admin, calls, replay, start_up
from .envs import SETTINGS, envs
from .inject import inject
from .serve import serve


def _print_version(context: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        click.echo(f"flashpool {start_up.version()}")
        context.exit()


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
    context.meta[SETTINGS] = start_up.read_settings_quietly


main.add_command(serve)
main.add_command(envs)
main.add_command(admin.health)
main.add_command(admin.stats)
main.add_command(inject)
for _command in (calls.ps, calls.logs, calls.stack, calls.cancel, calls.top, replay.replay):
    main.add_command(_command)


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
    # Only the outcome of the call matters here, not the events of the pool.
    settings = start_up.read_settings_quietly()
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
    sys.exit(start_up.CALL_FAILED)


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
    settings = start_up.read_settings_quietly()
    from flashpool.frontends.apps.errors import AppError

    from . import check

    try:
        text, good = check.run(target, resource, settings)
    except AppError as error:
        click.secho(f"Error: {error}", fg="red", err=True)
        sys.exit(start_up.CALL_FAILED)
    click.echo(text)
    if not good:
        sys.exit(start_up.CALL_FAILED)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of a table.")
@click.option("--changed", is_flag=True, help="Show only settings that differ from their default.")
def settings(as_json: bool, changed: bool) -> None:
    """List every setting: value, origin, default, meaning."""
    values = start_up.read_settings()
    from . import settings_table

    if as_json:
        click.echo(settings_table.as_json(values, changed=changed))
    elif changed and not settings_table.chosen(values, changed=True):
        click.echo("Every setting is at its default.")
    else:
        click.echo(settings_table.as_table(values, changed=changed))
