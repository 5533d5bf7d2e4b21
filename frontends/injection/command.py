"""Builds the start command of a container whose image does not contain flashpool.

    tarball's address, SHA-256, version --> sh -c '<inject.sh>' flashpool-inject URL SHA256 VERSION

`inject.sh` contains the steps. Its text never changes: variable parts are its arguments, quoted.
The SHA-256 is part of the command, so a changed tarball is refused.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Final

__all__ = ["InjectionError", "build_injection_cmd"]

_SCRIPT: Final = Path(__file__).with_name("inject.sh")
_URL: Final = "FLASH_WORKER_TARBALL_URL"
_SHA256: Final = "FLASH_WORKER_TARBALL_SHA256"
_VERSION: Final = "FLASH_WORKER_VERSION"
_ALLOW_HTTP: Final = "FLASH_WORKER_ALLOW_HTTP"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
#: An address is printable ASCII, which every shell and log shows alike.
_ADDRESS: Final = re.compile(r"[!-~]+")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class InjectionError(ValueError):
    """No safe command can be built from these values; the message says what is missing."""


def build_injection_cmd(
    *,
    url: str | None = None,
    sha256: str | None = None,
    version: str | None = None,
    python: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> str:
    """Return the command, for a shell or for a field that is split like a command line.

    Arguments that are left out come from the environment: FLASH_WORKER_TARBALL_URL,
    FLASH_WORKER_TARBALL_SHA256 and FLASH_WORKER_VERSION. In an address, ``{version}`` and
    ``{python}`` are replaced.

    Raises:
        InjectionError: the address is missing or unsafe, or the SHA-256 is missing.
    """
    environ = os.environ if environ is None else environ
    version = version or environ.get(_VERSION) or _own_version()
    address = _filled(url or environ.get(_URL) or "", version, python or "")
    digest = (sha256 or environ.get(_SHA256) or "").strip().lower()
    allows_http = environ.get(_ALLOW_HTTP) == "1"
    _check(address, digest, version, allows_http)
    command = ["sh", "-c", _script(), "flashpool-inject", address, digest, version]
    if address.startswith("http:"):
        command = ["env", f"{_ALLOW_HTTP}=1", *command]
    return shlex.join(command)


def _check(address: str, digest: str, version: str, allows_http: bool) -> None:
    if not address:
        raise InjectionError(
            f"No tarball address is given: set {_URL}, or give --url. `make tarball` builds one"
        )
    if not _ADDRESS.fullmatch(address):
        raise InjectionError(
            f"{address!r} is not a valid address: percent-encode blanks and special characters (%20 for a blank)"
        )
    if not _NAME.fullmatch(version):
        raise InjectionError(f"{version!r} is not a version")
    is_file = address.startswith("file:///")
    if address.startswith("http://") and not allows_http:
        raise InjectionError(
            f"{address} is not https. {_ALLOW_HTTP}=1 allows that, for a trusted network"
        )
    if not (is_file or address.startswith(("https://", "http://"))):
        raise InjectionError(f"{address} is neither an https:// nor a file:/// address")
    if digest and not _DIGEST.fullmatch(digest):
        raise InjectionError(f"{digest!r} is not a SHA-256, which has 64 digits, 0 to 9 and a to f")
    if not digest and not is_file:
        raise InjectionError(
            f"The SHA-256 of {address} is not given: set {_SHA256}, or give --sha256 or --tarball. "
            "Without it, anybody who can change the file could run code in the container"
        )


def _filled(address: str, version: str, python: str) -> str:
    if "{python}" in address and not python:
        raise InjectionError(f"{address} contains {{python}}: name the version with --python")
    return address.replace("{version}", version).replace("{python}", python)


def _script() -> str:
    """Return inject.sh without comments and indentation: the length of commands is limited.

    Text in single quotes over several lines is Python, and stays unchanged.
    """
    kept, quoted = [], False
    for line in _SCRIPT.read_text("utf-8").splitlines():
        text = line if quoted else line.strip()
        if not quoted and (not text or text.startswith("#")):
            continue
        kept.append(text)
        quoted ^= bool(text.count("'") % 2)
    return "\n".join(kept)


def _own_version() -> str:
    from importlib.metadata import version

    return version("flashpool")
