"""Environment variables of a resource of SDK 2.0: the platform's, and those for its worker."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Final

__all__ = ["API_ENTRY", "ENTRY_VARIABLE", "QUEUE_ENTRY", "concurrency", "is_live"]

#: Modules that load an API or a queue function in the worker, and the variable that configures
#: them.
API_ENTRY: Final = "_flashpool.sdk.api_entry"
QUEUE_ENTRY: Final = "_flashpool.sdk.queue_entry"
ENTRY_VARIABLE: Final = "FLASHPOOL_SDK_ENTRY"

#: Variables that the platform sets for a resource of a dev session, and for a task's pod.
_LIVE: Final = ("RUNPOD_DEV_APP", "RUNPOD_TASK_TOKEN")
_CONCURRENCY: Final = "RUNPOD_MAX_CONCURRENCY"


def concurrency(environ: Mapping[str, str]) -> int:
    """Return how many calls of a function may run together in its process; the default is one."""
    with suppress(ValueError):
        return max(1, int(environ.get(_CONCURRENCY, "1")))
    return 1


def is_live(environ: Mapping[str, str]) -> bool:
    """Return whether this endpoint or pod runs sources that a client of SDK 2.0 sends."""
    return any(environ.get(name) for name in _LIVE)
