"""`flashpool inject`: prints the command with which a container of another image runs flashpool."""

from __future__ import annotations

import sys
from pathlib import Path

import click

__all__ = ["inject"]


@click.group()
def inject() -> None:
    """Start flashpool in containers of other images."""


@inject.command("print-command")
@click.option("--url", help="Address of the tarball, instead of FLASH_WORKER_TARBALL_URL.")
@click.option("--sha256", help="Its SHA-256, instead of FLASH_WORKER_TARBALL_SHA256.")
@click.option(
    "--tarball",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The same tarball on this machine; its SHA-256 is computed.",
)
@click.option(
    "--version", help="Version, instead of FLASH_WORKER_VERSION or that of this installation."
)
@click.option("--python", help="Minor version of the image's Python, such as 3.12.")
def print_command(
    url: str | None,
    sha256: str | None,
    tarball: Path | None,
    version: str | None,
    python: str | None,
) -> None:
    """Print the start command for a container of any image.

    In an address, {version} and {python} are replaced by those two values. Without --url, the
    tarball of --tarball is used in its place, as a file:// address.
    """
    from flashpool.frontends.injection import InjectionError, build_injection_cmd

    if tarball is not None:
        sha256 = sha256 or _sha256(tarball)
        url = url or f"file://{tarball.resolve()}"
    try:
        command = build_injection_cmd(url=url, sha256=sha256, version=version, python=python)
    except InjectionError as error:
        click.secho(f"Error: {error}", fg="red", err=True)
        sys.exit(2)
    click.echo(command)


def _sha256(path: Path) -> str:
    import hashlib

    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()
