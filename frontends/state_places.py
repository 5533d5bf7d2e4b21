"""The folder for state that outlives a server, and the key that signs such state.

state: FLASHPOOL_STATE_DIR, else <volume>/flashpool, else <local>/flashpool
key:   derived from FLASHPOOL_VOLUME_KEY, else from RUNPOD_AI_API_KEY, which no call sees,
       else from <local>/reports.key
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import hmac
import logging
import os
import secrets
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from flashpool.envs.settings import DEFAULT_VOLUME
from flashpool.envs.store.volume_files import Folder
from flashpool.frontends.settings.table import Settings

from .disk import Disk, DiskHangs

_log = logging.getLogger(__name__)

#: flashpool's folder on a volume, or in a cache directory.
OURS: Final = "flashpool"
#: Seconds that a volume may take to answer.
_ANSWER_S: Final = 10.0
_KEY: Final = "reports.key"
_KEY_BYTES: Final = 32


def state_folder(settings: Settings) -> Path:
    """Return the folder of state that outlives this server."""
    if settings.state_dir is not None:
        return Path(settings.state_dir)
    volume = volume_of(settings)
    if volume is not None and _writable(volume):
        return volume / OURS
    return _local_folder(settings)


def _local_folder(settings: Settings) -> Path:
    """Return the folder of state on the machine's own disk."""
    if settings.local_dir is not None:
        return Path(settings.local_dir) / OURS
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / OURS


def volume_of(settings: Settings) -> Path | None:
    """Return the volume, or None."""
    if settings.volume is not None:
        return Path(settings.volume)
    return DEFAULT_VOLUME if _answered(DEFAULT_VOLUME, Path.is_dir) else None


def _writable(path: Path) -> bool:
    return _answered(path, _may_be_written)


def _may_be_written(path: Path) -> bool:
    return os.access(path, os.W_OK | os.X_OK)


@functools.lru_cache(maxsize=8)
def _answered(path: Path, what: Callable[[Path], bool]) -> bool:
    """Return the volume's answer; False for a volume that hangs, which is not asked again."""
    try:
        return Disk().wait(_ANSWER_S, partial(what, path))
    except DiskHangs as error:
        _log.error("%s: %s; waiting results are kept on local disk", path, error)
        return False


def signing_key(settings: Settings, purpose: bytes) -> bytes:
    """Derive a key for one purpose: a signature reveals nothing about the secret behind the key."""
    known = settings.volume_key or os.environ.get("RUNPOD_AI_API_KEY", "")
    secret = known.encode("utf-8", "surrogateescape") or _machine_key(_local_folder(settings))
    return hmac.new(secret, purpose, hashlib.sha256).digest()


def _machine_key(folder: Path) -> bytes:
    files = Folder(folder.parent, folder.name, mode=0o700)
    try:
        with files.opened(make=True) as handle:
            # If two workers start at once, the second uses the key that the first created.
            fcntl.flock(handle, fcntl.LOCK_EX)
            if (found := _private(files)) is not None:
                return found
            made = secrets.token_bytes(_KEY_BYTES)
            files.write(_KEY, [made])
            return made
    except OSError as error:
        _log.warning("A later process cannot find the reports that this process leaves: %s", error)
        return secrets.token_bytes(_KEY_BYTES)


def _private(files: Folder) -> bytes | None:
    """Return the key if no other user can read or write its file, else None."""
    status = files.status(_KEY)
    if status is None or status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        return None
    found = files.read(_KEY, _KEY_BYTES) if status.st_size == _KEY_BYTES else b""
    return found or None
