"""The document of ``GET /stats``: the figures of a pool, and of which server they are.

`VERSION` counts changes that break readers: a field that is removed or changes its meaning. A new
field does not change it. The JSON Schema is derived from the dataclasses.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any, Final

import msgspec

from flashpool.pool.stats import PoolStats
from flashpool.pool.workers.ends.memory import proportional

from .job_counts import JobsStats
from .served import Served
from .storage import Storage, StorageStats

VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStats:
    """The server, or the program, that has the pool."""

    #: ``live``, ``queue``, ``app`` or ``program``.
    mode: str
    version: str
    #: Seconds since 1970.
    started_at: float
    uptime_s: float
    #: Digest of all settings but secrets; equal settings have equal digests.
    settings_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsDocument(PoolStats):
    """All figures of one server at one moment."""

    schema_version: int
    server: ServerStats
    #: Free space on the disks of environments.
    storage: list[StorageStats]
    #: Jobs of the platform's queue; None in other modes.
    jobs: JobsStats | None = None


def document(served: Served, storage: Storage, *, with_output: bool) -> StatsDocument:
    """Return a snapshot. ``with_output``: the reader may see the output of failed calls."""
    pool = served.pool.stats()
    parts = {field.name: getattr(pool, field.name) for field in dataclasses.fields(pool)}
    if not with_output:
        parts["recent_failures"] = [
            dataclasses.replace(one, last_lines="") for one in pool.recent_failures
        ]
    now = time.time()
    server = ServerStats(
        mode=served.mode,
        version=_version(),
        started_at=round(served.started_at, 3),
        uptime_s=round(now - served.started_at, 3),
        settings_digest=served.settings_digest,
    )
    return StatsDocument(
        **parts,
        schema_version=VERSION,
        server=server,
        storage=storage.latest(),
        jobs=None if served.jobs is None else served.jobs(),
    )


def with_memory(stats: StatsDocument) -> StatsDocument:
    """Add the memory of zygotes. Call this in a thread: the kernel visits every page."""
    zygotes = [
        one if one.pid is None else dataclasses.replace(one, pss_bytes=proportional(one.pid))
        for one in stats.zygotes
    ]
    return dataclasses.replace(stats, zygotes=zygotes)


@lru_cache(maxsize=1)
def _version() -> str:
    return version("flashpool")


@lru_cache(maxsize=1)
def schema() -> dict[str, Any]:
    """Return the JSON Schema of the document."""
    made = msgspec.json.schema(StatsDocument)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"flashpool stats, version {VERSION}",
        **made,
    }
