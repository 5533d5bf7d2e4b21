"""The server, or the program with a `Pool`, that an admin listener shows."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal

import msgspec

from flashpool.frontends.service import Service
from flashpool.frontends.settings.table import Settings, table
from flashpool.pool.backend import Backend

from .job_counts import JobsStats

Mode = Literal["live", "queue", "app", "program"]

#: Hexadecimal digits of the digest of settings.
_DIGEST: Final = 12


@dataclass(frozen=True, kw_only=True)
class Served:
    """Gives handlers access to the pool and its settings, on the listener's loop."""

    pool: Backend
    settings: Settings
    #: ``live`` (/execute), ``queue`` (jobs), ``app`` (a deployed app), ``program`` (a `Pool`).
    mode: Mode
    #: The service of a server; None in a program.
    service: Service | None = None
    #: Returns the counters of the queue's jobs; None in other modes.
    jobs: Callable[[], JobsStats] | None = None
    #: Seconds since 1970.
    started_at: float = field(default_factory=time.time)
    #: Set when the listener stops: endless answers, such as event streams, end.
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    def of(cls, service: Service, settings: Settings, mode: Mode) -> Served:
        """Return the values of a server."""
        return cls(pool=service.pool, settings=settings, mode=mode, service=service)

    @cached_property
    def settings_digest(self) -> str:
        """Return a digest of all settings but secrets; equal settings have equal digests."""
        values = {
            name: getattr(self.settings, name) for name, row in table().items() if not row.secret
        }
        return hashlib.sha256(msgspec.json.encode(values, order="sorted")).hexdigest()[:_DIGEST]
