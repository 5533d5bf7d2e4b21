"""Paths of waiting reports and of large results, and the key that signs waiting reports.

<state>/outbox/<endpoint>/<worker>     state: FLASHPOOL_STATE_DIR, else <volume>/flashpool,
                                       else <local>/flashpool
<volume>/flashpool/results             for other machines to read, so never on local disk

key: derived from FLASHPOOL_VOLUME_KEY, else from RUNPOD_AI_API_KEY, which no call sees,
     else from <local>/reports.key
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from flashpool.frontends.settings.table import Settings
from flashpool.frontends.state_places import OURS, signing_key, state_folder, volume_of

_PURPOSE: Final = b"flashpool: reports that wait"
_ODD: Final = re.compile(r"[^A-Za-z0-9_.-]")


def outbox_folder(settings: Settings) -> Path:
    """Return the outbox; only this worker uses it if the worker `is_named`."""
    endpoint = os.environ.get("RUNPOD_ENDPOINT_ID") or "endpoint"
    worker = os.environ.get("RUNPOD_POD_ID") or "worker"
    return state_folder(settings) / "outbox" / _name(endpoint) / _name(worker)


def is_named() -> bool:
    """Return whether the platform has given this worker a unique name."""
    return bool(os.environ.get("RUNPOD_POD_ID"))


def spill_folder(settings: Settings) -> Path | None:
    """Return the folder for large results; None without a volume."""
    volume = volume_of(settings)
    return None if volume is None else volume / OURS / "results"


def _name(text: str) -> str:
    return _ODD.sub("-", text).strip(".")[:100] or "none"


def report_key(settings: Settings) -> bytes:
    """Return the key that signs waiting reports; the next process of this worker derives the same.

    Without a signature, anyone who can write to the volume could forge a report, and have it posted
    as a job's result.
    """
    return signing_key(settings, _PURPOSE)
