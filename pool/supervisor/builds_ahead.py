"""Environments that an operator has built before any call asks for them."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from flashpool.pool.calls import Provision
from flashpool.pool.errors import Cancelled, FlashpoolError
from flashpool.pool.watching import BuildView

if TYPE_CHECKING:
    from flashpool.envs import Spec

    from .environment_leases import EnvironmentLeases

_log = logging.getLogger(__name__)
#: Length of a build's key.
_KEY: Final = 12


def key_of(spec: Spec) -> str:
    """Return the key of a build: the same for requests that are written alike."""
    return hashlib.sha256(repr(spec).encode("utf-8", "replace")).hexdigest()[:_KEY]


class BuildAhead:
    """A build without a call."""

    def __init__(self, spec: Spec, environments: EnvironmentLeases) -> None:
        self.spec = spec
        self.since = time.monotonic()
        self.progress = ""
        self.reason = ""
        self.task: asyncio.Task[Provision] = asyncio.ensure_future(self._make(environments))

    async def _make(self, environments: EnvironmentLeases) -> Provision:
        try:
            return await environments.build_ahead(self.spec, self._report)
        except FlashpoolError as error:
            _log.warning("Building ahead failed: %s", error)
            raise

    def _report(self, line: str) -> None:
        self.progress = line

    def view(self, key: str) -> BuildView:
        """Return what operators see of this build."""
        return BuildView(
            key=key,
            requirements=self.spec.requirements,
            python_version=self.spec.python_version,
            calls=(),
            age_s=round(time.monotonic() - self.since, 3),
            progress=self.progress,
        )


class BuildsAhead:
    """All running builds without a call."""

    def __init__(self) -> None:
        self._builds: dict[str, BuildAhead] = {}

    def views(self) -> list[BuildView]:
        """Return what operators see of these builds."""
        return [one.view(key) for key, one in self._builds.items()]

    async def build(
        self, spec: Spec, environments: EnvironmentLeases, wait_s: float
    ) -> Mapping[str, Any]:
        """Build an environment, or join its build; return its facts.

        After ``wait_s`` return the build's key and progress.

        Raises:
            FlashpoolError: the environment cannot be built.
        """
        key = key_of(spec)
        one = self._builds.get(key)
        if one is None:
            one = self._builds[key] = BuildAhead(spec, environments)
            one.task.add_done_callback(lambda task: self._over(key, task))
        done, _ = await asyncio.wait((one.task,), timeout=wait_s)
        if not done:
            return {"key": key, "state": "building", "progress": one.progress}
        if one.task.cancelled():
            reason = one.reason or "the pool was shut down"
            raise Cancelled(f"the build was cancelled: {reason}", reason=reason)
        found = one.task.result()
        return {
            "key": key,
            "state": "ready",
            "environment": found.digest,
            "origin": found.origin,
            "seconds": {
                "resolve": round(found.resolve_s, 3),
                "fetch": round(found.fetch_s, 3),
                "build": round(found.build_s, 3),
            },
        }

    def _over(self, key: str, task: asyncio.Task[Provision]) -> None:
        del self._builds[key]
        if not task.cancelled():
            task.exception()  # marks the error as seen; `_make` has logged it

    def cancel(self, key: str, reason: str) -> bool:
        """Cancel a build; return False if there is no such build."""
        one = self._builds.get(key)
        if one is None:
            return False
        one.reason = reason
        one.task.cancel()
        return True

    async def close(self) -> None:
        """Cancel all builds."""
        tasks = [one.task for one in self._builds.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
