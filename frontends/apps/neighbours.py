"""Keeps the addresses of the app's other resources fresh, in a file that the app's registry reads.

    every 300 s --> platform: environment -> active build -> its manifest's resources_endpoints
                --> one file, by a rename: this app's manifest with those endpoints

The refresh runs beside the requests, and no request waits for it. A single task asks the platform,
so refreshes never overlap. If the platform does not answer, the known addresses stay, with their
age. Without FLASH_ENVIRONMENT_ID the platform is not asked.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from flashpool.pool.stats import NeighbourStats

from .errors import ManifestRefused, NoAnswer
from .manifest import NAME, read_manifest
from .regular_files import read_regular

__all__ = ["Neighbours", "neighbours_of"]

_log = logging.getLogger(__name__)

_TTL_S: Final = 300.0
_JITTER: Final = 0.1
_RETRIES_S: Final = (1.0, 2.0, 4.0)
_MOST_BYTES: Final = 16 << 20
_API: Final = "https://api.runpod.io"


class Neighbours:
    """The endpoints that are known, and the task that refreshes them."""

    def __init__(
        self,
        folder: Path,
        target: Path,
        ask: Callable[[], Awaitable[dict[str, str]]],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._folder = folder
        self.target = target
        self._ask = ask
        self._sleep = sleep
        self._endpoints: dict[str, str] = {}
        self._answered: float | None = None
        self._failure = ""

    def stats(self) -> NeighbourStats:
        """Return the current figures."""
        age = None if self._answered is None else round(time.monotonic() - self._answered, 3)
        return NeighbourStats(
            endpoints=len(self._endpoints), age_s=age, failure=self._failure or None
        )

    def begin(self) -> None:
        """Write the file with the addresses of an earlier process, if there are any; blocking."""
        try:
            self._endpoints = self._left_behind()
            self._write(self._endpoints)
        except (ManifestRefused, OSError) as error:
            self._failure = str(error)
            _log.warning("%s: the app cannot find the other resources of its project", error)

    async def run(self) -> None:
        """Refresh until cancelled."""
        while True:
            await self.refresh()
            # Without jitter, workers that started together would always ask together.
            await self._sleep(_TTL_S * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311

    async def refresh(self) -> None:
        """Ask the platform and write its answer; without an answer the known addresses stay."""
        for wait_s in (*_RETRIES_S, None):
            try:
                endpoints = await self._ask()
                await asyncio.to_thread(self._write, endpoints)
            except (NoAnswer, ManifestRefused, OSError) as error:
                self._failure = str(error)
            else:
                self._endpoints, self._answered = endpoints, time.monotonic()
                self._failure = ""
                return
            if wait_s is not None:
                await self._sleep(wait_s)
        _log.warning("%s; the known endpoints are kept", self._failure)

    def _left_behind(self) -> dict[str, str]:
        try:
            value = json.loads(read_regular(self.target, _MOST_BYTES))["resources_endpoints"]
            return {name: url for name, url in value.items() if isinstance(url, str)}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return {}

    def _write(self, endpoints: Mapping[str, str]) -> None:
        read_manifest(self._folder)  # check: the registry cannot read an invalid one
        value = json.loads(read_regular(self._folder / NAME, _MOST_BYTES))
        value["resources_endpoints"] = dict(endpoints)
        self.target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.target.with_name(f".{self.target.name}.{secrets.token_hex(4)}")
        try:
            unfinished.write_text(json.dumps(value, indent=2), "utf-8")
            unfinished.replace(self.target)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise


def neighbours_of(folder: Path, environ: Mapping[str, str] = os.environ) -> Neighbours | None:
    """Return the neighbours of an app's endpoint; None if no environment is named."""
    environment = environ.get("FLASH_ENVIRONMENT_ID", "")
    if not environment:
        return None
    # Imported late: the module imports an HTTP client, which most servers do not need.
    from .platform_client import Platform

    named = environ.get("FLASH_MANIFEST_PATH", "")
    platform = Platform(
        url=(environ.get("RUNPOD_API_BASE_URL", "").strip() or _API).rstrip("/"),
        key=environ.get("RUNPOD_API_KEY", ""),
        environment=environment,
    )
    target = Path(named) if named else folder / ".flash" / NAME
    return Neighbours(folder, target, platform.endpoints)
