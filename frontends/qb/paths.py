"""Where the queue front-end keeps files: results that wait, and results that are too large.

<state>/outbox/<endpoint>/<worker>     state: FLASHPOOL_STATE_DIR, else <volume>/flashpool,
                                       else <local>/flashpool
<volume>/flashpool/results             for other machines to read, so never on local disk
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from flashpool.envs.settings import DEFAULT_VOLUME
from flashpool.frontends.settings.table import Settings

from .disk import Disk, DiskHangs

_log = logging.getLogger(__name__)

#: Seconds that a volume may take to say whether it is there.
_ANSWER_S: Final = 10.0
_OURS: Final = "flashpool"
_ODD: Final = re.compile(r"[^A-Za-z0-9_.-]")


def outbox_folder(settings: Settings) -> Path:
    """Of this worker alone, if it `is_named`."""
    endpoint = os.environ.get("RUNPOD_ENDPOINT_ID") or "endpoint"
    worker = os.environ.get("RUNPOD_POD_ID") or "worker"
    return _state(settings) / "outbox" / _name(endpoint) / _name(worker)


def is_named() -> bool:
    """Whether the platform has given this worker a name, which no other has."""
    return bool(os.environ.get("RUNPOD_POD_ID"))


def spill_folder(settings: Settings) -> Path | None:
    """None without a volume."""
    volume = _volume(settings)
    return None if volume is None else volume / _OURS / "results"


def _state(settings: Settings) -> Path:
    if settings.state_dir is not None:
        return Path(settings.state_dir)
    volume = _volume(settings)
    if volume is not None and _writable(volume):
        return volume / _OURS
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
