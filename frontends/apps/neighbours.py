"""Where the app's other resources are served, kept fresh for the app's own registry to read.

    every 300 s or so --> platform: environment -> active build -> its manifest's resources_endpoints
                      --> one file, by a rename: this app's manifest with those endpoints

It runs beside the requests, and none waits for it. One task asks, so that no two refreshes
overlap. When the platform does not answer, what was known stays, and its age tells. Without an
environment's name (FLASH_ENVIRONMENT_ID) nobody is asked.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from flashpool.pool.stats import NeighbourStats

from .errors import ManifestRefused
from .manifest import NAME, read_manifest
from .regular_files import read_regular

__all__ = ["Neighbours", "Platform", "neighbours_of"]

_log = logging.getLogger(__name__)

_TTL_S: Final = 300.0
_JITTER: Final = 0.1
_RETRIES_S: Final = (1.0, 2.0, 4.0)
_LIMIT_S: Final = 30.0
_MOST_BYTES: Final = 16 << 20
_API: Final = "https://api.runpod.io"
_ENVIRONMENT: Final = (
    "query active($id: String!) {flashEnvironment(flashEnvironmentId: $id) {activeBuildId}}"
)
_BUILD: Final = "query manifest($id: String!) {flashBuild(flashBuildId: $id) {manifest}}"


class NoAnswer(Exception):
    """The platform did not say where the resources are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """Whom to ask."""

    url: str
    key: str
    environment: str

    async def endpoints(self) -> dict[str, str]:
        """Resource -> URL.

        Raises:
            NoAnswer: with the reason.
        """
        limit = aiohttp.ClientTimeout(total=_LIMIT_S)
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            async with aiohttp.ClientSession(
                timeout=limit, headers=headers, connector=_connector()
            ) as session:
                build = await self._ask(session, _ENVIRONMENT, self.environment)
                name = _inside(build, "flashEnvironment", "activeBuildId")
                manifest = await self._ask(session, _BUILD, str(name))
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise NoAnswer(f"{self.url}: {type(error).__name__} {error}") from None
        found = _inside(manifest, "flashBuild", "manifest")
        found = found.get("resources_endpoints") if isinstance(found, dict) else None
        if not isinstance(found, dict):
            raise NoAnswer("the active build's manifest has no resources_endpoints")
        return {name: url for name, url in found.items() if isinstance(url, str)}

    async def _ask(self, session: aiohttp.ClientSession, query: str, name: str) -> Any:
        body = {"query": query, "variables": {"id": name}}
        async with session.post(f"{self.url}/graphql", json=body) as response:
            if response.status != 200:
                raise NoAnswer(f"{self.url} answers {response.status}")
            text = await _read(response)
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise NoAnswer(f"{self.url} answers with something that is not JSON") from None


def _connector() -> aiohttp.TCPConnector:
    # Where it is installed, aiodns would be the resolver: it leaves a thread behind for good.
    return aiohttp.TCPConnector(resolver=aiohttp.ThreadedResolver())


async def _read(response: aiohttp.ClientResponse) -> bytes:
    text = b""
    async for part in response.content.iter_any():
        text += part
        if len(text) > _MOST_BYTES:
            raise NoAnswer(f"the answer has more than {_MOST_BYTES} bytes")
    return text


def _inside(answer: Any, *path: str) -> Any:
    value = answer.get("data") if isinstance(answer, dict) else None
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    if value is None:
        raise NoAnswer(f"the answer has no {'.'.join(path)}: {str(answer)[:200]}")
    return value


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
        """As they are now."""
        age = None if self._answered is None else round(time.monotonic() - self._answered, 3)
        return NeighbourStats(
            endpoints=len(self._endpoints), age_s=age, failure=self._failure or None
        )

    def begin(self) -> None:
        """Have the app's registry find its manifest, with the addresses that an earlier one left; blocking."""
        try:
            self._endpoints = self._left_behind()
            self._write(self._endpoints)
        except (ManifestRefused, OSError) as error:
            self._failure = str(error)
            _log.warning("%s: the app cannot find the other resources of its project", error)

    async def run(self) -> None:
        """Refresh for ever; to be cancelled."""
        while True:
            await self.refresh()
            # Workers that started together do not go on asking together.
            await self._sleep(_TTL_S * random.uniform(1 - _JITTER, 1 + _JITTER))  # noqa: S311

    async def refresh(self) -> None:
        """Ask, and write what the answer is; what was known stays when there is none."""
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
        read_manifest(self._folder)  # checked: what the app's registry cannot read is not written
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
    """What an app's endpoint has to be told; None where no environment is named."""
    environment = environ.get("FLASH_ENVIRONMENT_ID", "")
    if not environment:
        return None
    named = environ.get("FLASH_MANIFEST_PATH", "")
    platform = Platform(
        url=(environ.get("RUNPOD_API_BASE_URL", "").strip() or _API).rstrip("/"),
        key=environ.get("RUNPOD_API_KEY", ""),
        environment=environment,
    )
    target = Path(named) if named else folder / ".flash" / NAME
    return Neighbours(folder, target, platform.endpoints)
