"""Where the queue front-end keeps files: results that wait, and results that are too large.
What waits is signed with a key of the worker's.

<state>/outbox/<endpoint>/<worker>     state: FLASHPOOL_STATE_DIR, else <volume>/flashpool,
                                       else <local>/flashpool
<volume>/flashpool/results             for other machines to read, so never on local disk

key: of FLASHPOOL_VOLUME_KEY, else of RUNPOD_AI_API_KEY, which no call sees; else <local>/reports.key
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import hmac
import logging
import os
import re
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

#: Seconds that a volume may take to say whether it is there.
_ANSWER_S: Final = 10.0
_OURS: Final = "flashpool"
_PURPOSE: Final = b"flashpool: reports that wait"
_KEY: Final = "reports.key"
_KEY_BYTES: Final = 32
_ODD: Final = re.compile(r"[^A-Za-z0-9_.-]")


def outbox_folder(settings: Settings) -> Path:
    """Of this worker alone, if it `is_named`."""
    endpoint = os.environ.get("RUNPOD_ENDPOINT_ID") or "endpoint"
    worker = os.environ.get("RUNPOD_POD_ID") or "worker"
    return state_folder(settings) / "outbox" / _name(endpoint) / _name(worker)


def is_named() -> bool:
    """Whether the platform has given this worker a name, which no other has."""
    return bool(os.environ.get("RUNPOD_POD_ID"))


def spill_folder(settings: Settings) -> Path | None:
    """None without a volume."""
    volume = _volume(settings)
    return None if volume is None else volume / _OURS / "results"


def state_folder(settings: Settings) -> Path:
    """Where this server keeps what outlives it."""
    if settings.state_dir is not None:
        return Path(settings.state_dir)
    volume = _volume(settings)
    if volume is not None and _writable(volume):
        return volume / _OURS
    return _local_folder(settings)


def _local_folder(settings: Settings) -> Path:
    """On the machine's own disk."""
    if settings.local_dir is not None:
        return Path(settings.local_dir) / _OURS
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / _OURS


def _volume(settings: Settings) -> Path | None:
    if settings.volume is not None:
        return Path(settings.volume)
    return DEFAULT_VOLUME if _answered(DEFAULT_VOLUME, Path.is_dir) else None


def _writable(path: Path) -> bool:
    return _answered(path, _may_be_written)


def _may_be_written(path: Path) -> bool:
    return os.access(path, os.W_OK | os.X_OK)


@functools.lru_cache(maxsize=8)
def _answered(path: Path, what: Callable[[Path], bool]) -> bool:
    """What a volume says of itself; one that hangs counts as none, and is asked once."""
    try:
        return Disk().wait(_ANSWER_S, partial(what, path))
    except DiskHangs as error:
        _log.error("%s: %s; results that wait are kept on local disk", path, error)
        return False


def _name(text: str) -> str:
    return _ODD.sub("-", text).strip(".")[:100] or "none"


def report_key(settings: Settings) -> bytes:
    """What reports that wait are signed with; the next process of this worker has the same.

    Whoever can write to a volume could otherwise lay down a report of his own, and have it posted
    as a job's result.
    """
    return signing_key(settings, _PURPOSE)


def signing_key(settings: Settings, purpose: bytes) -> bytes:
    """A key for one use only: nobody learns from a signature what the key was made of."""
    known = settings.volume_key or os.environ.get("RUNPOD_AI_API_KEY", "")
    secret = known.encode("utf-8", "surrogateescape") or _machine_key(_local_folder(settings))
    return hmac.new(secret, purpose, hashlib.sha256).digest()


def _machine_key(folder: Path) -> bytes:
    files = Folder(folder.parent, folder.name, mode=0o700)
    try:
        with files.opened(make=True) as handle:
            # Of two workers that start at once, the second has the first one's.
            fcntl.flock(handle, fcntl.LOCK_EX)
            if (found := _private(files)) is not None:
                return found
            made = secrets.token_bytes(_KEY_BYTES)
            files.write(_KEY, [made])
            return made
    except OSError as error:
        _log.warning("A later process will not know what this one leaves to be reported: %s", error)
        return secrets.token_bytes(_KEY_BYTES)


def _private(files: Folder) -> bytes | None:
    """What nobody else may have written, or read."""
    status = files.status(_KEY)
    if status is None or status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        return None
    found = files.read(_KEY, _KEY_BYTES) if status.st_size == _KEY_BYTES else b""
    return found or None
