"""Live APIs of SDK 2.0: ``POST /_runpod/sync`` sends a module, whose routes are then served.

    sync --> folder with __runpod_live__.py --> pool.open_app --settled--> served: it takes over
                                                              `----------> failed: 500, a reason
    any other path --> the app that took over last; 404 before the first sync

The new app is loaded while the old app serves, and the old app answers its requests before it
closes. An accepted source is kept (`synced_source`), so that later servers and other servers of the
endpoint serve the same source.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.types import ASGIApp, Receive, Scope, Send

from flashpool.envs import Spec
from flashpool.frontends.apps.serving.asgi_proxy import AppProxy
from flashpool.frontends.apps.serving.policies import policies_of
from flashpool.frontends.responses import Answer
from flashpool.frontends.service import Service
from flashpool.pool.apps import App, AppService, AppState

from .api_folders import ApiFolders
from .live_calls import requirements_with_sdk
from .sdk_variables import API_ENTRY, ENTRY_VARIABLE
from .synced_source import SourceStore, SyncedSource, read_sync

if TYPE_CHECKING:
    from flashpool.frontends.settings.table import Settings

__all__ = ["LiveApi"]

_log = logging.getLogger(__name__)

PRELOADED: Final = ("runpod.apps", "fastapi")
_MODULE: Final = "__runpod_live__"
#: Seconds between checks for a source that another server of the endpoint has accepted.
_LOOK_S: Final = 1.0
#: Seconds that a volume may take to answer.
_DISK_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Serving:
    """One source that is served, or is being loaded."""

    source: SyncedSource
    folder: Path
    service: AppService
    proxy: ASGIApp


@dataclass(frozen=True, slots=True)
class _Served:
    """The target of a proxy's requests; see `asgi_proxy.Serving`."""

    service: AppService
    problem: str = ""
    generated: bool = False


class LiveApi:
    """The API of one live endpoint."""

    def __init__(self, service: Service, settings: Settings, environ: Mapping[str, str]) -> None:
        self._service = service
        self._settings = settings
        self._store = SourceStore(settings, environ)
        self._folders = ApiFolders(settings)
        self._in_session = bool(environ.get("RUNPOD_DEV_APP"))
        self._current: _Serving | None = None
        self._building = asyncio.Lock()
        self._looked_at = 0.0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run with the service; in a dev session, serve the kept source at once."""
        if self._in_session:
            await self._look()
        try:
            yield
        finally:
            await asyncio.to_thread(self._folders.close)

    # Syncs.

    async def sync(self, body: bytes) -> Answer:
        """Load a source, and serve it if it loads.

        Raises:
            InvalidRequest: the body is not a valid sync.
        """
        source = read_sync(body)
        async with self._building:
            try:
                new = await self._open(source)
            except OSError as error:
                return _answer(500, {"status": "failed", "error": f"it cannot be written: {error}"})
            if await new.service.settled() is not AppState.SERVED:
                reason = new.service.failure
                self._retire(new)
                _log.warning("%s: the synced source is not served: %s", source.resource, reason)
                return _answer(500, {"status": "failed", "error": reason})
            self._take_over(new)
        try:
            await asyncio.wait_for(asyncio.to_thread(self._store.keep, source), _DISK_S)
        except (OSError, asyncio.TimeoutError) as error:
            _log.warning(
                "%s: its source cannot be saved for later servers: %s", source.resource, error
            )
        return _answer(200, {"status": "synced", "hash": source.digest})

    async def _open(self, source: SyncedSource) -> _Serving:
        settings = self._settings
        folder = await asyncio.to_thread(self._folders.make, _MODULE, source.source)
        pool = self._service.pool
        told = {"module": _MODULE, "resource": source.resource, "paths": []}
        service = pool.open_app(
            App(
                name=source.resource,
                directory=str(folder),
                module=API_ENTRY,
                generated=False,
                spec=self._spec_of(source),
                env={ENTRY_VARIABLE: json.dumps(told)},
                preload=PRELOADED,
                memory_mb=settings.memory_mb,
                workers=settings.app_workers or max(1, pool.stats().gpus.total),
                concurrency=settings.app_concurrency,
                threads=settings.app_threads,
                queue_limit=settings.queue_limit,
                queue_timeout_s=settings.queue_timeout_s,
                start_timeout_s=settings.app_start_timeout_s,
                websockets=settings.app_websockets,
                policies=policies_of(settings, source.resource),
            )
        )
        return _Serving(
            source=source, folder=folder, service=service, proxy=self._proxy_of(service)
        )

    def _proxy_of(self, service: AppService) -> ASGIApp:
        settings, pool = self._settings, self._service.pool
        return AppProxy(
            _Served(service),
            max_body_mb=settings.max_body_mb,
            draining=lambda: pool.draining,
        )

    def _spec_of(self, source: SyncedSource) -> Spec | None:
        wanted = requirements_with_sdk(source.dependencies or (), self._settings.calls_runpod)
        system = tuple(source.system_dependencies or ())
        if not (wanted or system):
            return None
        return Spec(requirements=wanted, system_packages=system)

    def _take_over(self, new: _Serving) -> None:
        old, self._current = self._current, new
        if old is not None:
            self._retire(old)

    def _retire(self, old: _Serving) -> None:
        """Let the app answer its requests within the drain limit, then stop it."""
        old.service.retire(self._settings.drain_s, partial(self._folders.remove, old.folder))

    # Requests.

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answer a request from the API; return False if no API is served."""
        if self._current is None or self._store.is_shared:
            await self._look()
        if self._current is None:
            return False
        await self._current.proxy(scope, receive, send)
        return True

    async def _look(self) -> None:
        """Serve the source that an earlier or another server of the endpoint accepted, if newer."""
        now = time.monotonic()
        if now < self._looked_at + _LOOK_S or self._building.locked():
            return
        self._looked_at = now
        async with self._building:
            try:
                found = await asyncio.wait_for(asyncio.to_thread(self._store.find), _DISK_S)
            except asyncio.TimeoutError:
                return
            if found is None:
                return
            current = self._current
            if current is None:
                _log.info("%s: serving the source that was synced before", found.resource)
                self._take_over(await self._open(found))
            elif found.taken_at > current.source.taken_at:
                self._take_over(await self._open(found))


def _answer(status: int, fields: dict[str, str]) -> Answer:
    return Answer(status, json.dumps(fields).encode())
