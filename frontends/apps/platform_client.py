"""Asks the platform where the resources of an environment are served.

environment --> its active build --> that build's manifest --> resources_endpoints
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from .errors import NoAnswer

__all__ = ["Platform"]

_LIMIT_S: Final = 30.0
_MOST_BYTES: Final = 16 << 20
_ENVIRONMENT: Final = (
    "query active($id: String!) {flashEnvironment(flashEnvironmentId: $id) {activeBuildId}}"
)
_BUILD: Final = "query manifest($id: String!) {flashBuild(flashBuildId: $id) {manifest}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """Address, key and environment for these queries."""

    url: str
    key: str
    environment: str

    async def endpoints(self) -> dict[str, str]:
        """Return resource -> URL.

        Raises:
            NoAnswer: the platform did not answer as expected; the message has the reason.
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
    # If aiodns is installed, aiohttp resolves names with it, and aiodns leaves a thread running.
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
