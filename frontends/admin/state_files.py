"""Files of admin listeners on the local disk, with which commands find a listener and its token.

    <state>/admin/token                the token, created at the first start; mode 0600
    <state>/admin/<pid>-<port>.json    the address of a listener; removed when it stops

``<state>`` is `FLASHPOOL_STATE_DIR`, else ``flashpool`` in `FLASHPOOL_LOCAL_DIR`, else in the
user's cache directory. It is never on the volume, which other machines share.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from flashpool.envs.store.volume_files import Folder
from flashpool.frontends.settings.table import Settings

_log = logging.getLogger(__name__)

_OURS: Final = "flashpool"
_FOLDER: Final = "admin"
_TOKEN: Final = "token"  # noqa: S105 - a file's name
_MOST: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminAddress:
    """Address and process of an admin listener."""

    pid: int
    url: str
    mode: str
    #: Seconds since 1970.
    started_at: float


def state_folder(settings: Settings) -> Path:
    """Return the state directory, on the machine's own disk."""
    if settings.state_dir is not None:
        return Path(settings.state_dir)
    if settings.local_dir is not None:
        return Path(settings.local_dir) / _OURS
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / _OURS


def _files(settings: Settings) -> Folder:
    return Folder(state_folder(settings), _FOLDER, mode=0o700)


def made_token(settings: Settings) -> tuple[str, bool]:
    """Return the token that servers of this user on this machine share, and whether it is new.

    Raises:
        OSError: the token cannot be read or saved.
    """
    files = _files(settings)
    with files.opened(make=True) as handle:
        # If two servers start at once, the second uses the token that the first created.
        fcntl.flock(handle, fcntl.LOCK_EX)
        if (found := _private(files)) is not None:
            return found, False
        made = secrets.token_urlsafe(32)
        files.write(_TOKEN, [made.encode()])
        return made, True


def kept_token(settings: Settings) -> str | None:
    """Return the token that a server of this user created, or None."""
    try:
        return _private(_files(settings))
    except OSError:
        return None


def _private(files: Folder) -> str | None:
    """Return the token if no other user can read or write its file, else None."""
    status = files.status(_TOKEN)
    if status is None or status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        return None
    text = files.read(_TOKEN, _MOST).decode("ascii", "replace").strip()
    return text if text.isascii() and text.isprintable() and text else None


def announce(settings: Settings, address: AdminAddress) -> None:
    """Save the listener's address. A failure is only logged: the listener serves all the same."""
    try:
        _files(settings).write(_name(address), [msgspec.json.encode(address)])
    except OSError as error:
        _log.info("Commands on this machine cannot find this server: %s", error)


def withdraw(settings: Settings, address: AdminAddress) -> None:
    """Remove the file of a listener that has closed."""
    with contextlib.suppress(OSError):
        _files(settings).remove(_name(address))


def _name(address: AdminAddress) -> str:
    return f"{address.pid}-{urlsplit(address.url).port}.json"


def addresses(settings: Settings) -> list[AdminAddress]:
    """Return the addresses of running listeners, the latest first; remove all other files."""
    return sorted(_addresses(settings), key=lambda one: one.started_at, reverse=True)


def _addresses(settings: Settings) -> Iterator[AdminAddress]:
    files = _files(settings)
    try:
        names = files.names()
    except OSError:
        return
    for name in names:
        if name.endswith(".json"):
            with contextlib.suppress(OSError, msgspec.DecodeError):
                found = msgspec.json.decode(files.read(name, _MOST), type=AdminAddress)
                if _is_alive(found.pid):
                    yield found
                else:
                    files.remove(name)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
