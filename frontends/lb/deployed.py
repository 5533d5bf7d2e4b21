"""A deployed app as an ASGI application: from a source to workers that serve it.

    start --> prepare: wait for the artifact, unpack, read --AppError--> 503, and again later where
                 |                                                       that may pass
                 '--> pool.open_app --> AppProxy --> all further requests

Until the app's place is taken by its proxy, `/ping` and everything else are answered here. The
server's life is that of `server` or of a host; what is served is the app's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from flashpool.frontends.admin import Admin
from flashpool.frontends.apps.errors import AppError
from flashpool.frontends.apps.preparation import AppSource, PreparedApp
from flashpool.frontends.apps.serving.asgi_proxy import AppProxy
from flashpool.frontends.service import Service
from flashpool.frontends.settings.table import Settings

_log = logging.getLogger(__name__)

#: Seconds between tries to prepare an app where a failure may pass; the last one again and again.
_PAUSES_S: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
_NOT_YET: Final = "the app is not loaded yet"
_JSON: Final = (b"content-type", b"application/json")


class DeployedEndpoint:
    """The ASGI application. ``lifespan_context`` is the life of all that it needs."""

    def __init__(
        self,
        service: Service,
        settings: Settings,
        source: AppSource,
        admin: Admin | None = None,
    ) -> None:
        self._service = service
        self._settings = settings
        self._source = source
        self._admin = admin
        self._proxy: ASGIApp | None = None
        #: Why the app could not be prepared when it was last tried.
        self._failure = ""
        self._prepared: PreparedApp | None = None
        self._neighbours: asyncio.Task[None] | None = None
        #: May be wrapped by whoever hosts it.
        self.lifespan_context: Callable[[DeployedEndpoint], AbstractAsyncContextManager[None]]
        self.lifespan_context = DeployedEndpoint._running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the lifespan."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self._proxy is not None:
            await self._proxy(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._refuse(scope, send)
        else:
            await self._answer(scope, send)

    # Before the app has its place.

    async def _answer(self, scope: Scope, send: Send) -> None:
        if scope["path"] == "/ping" and scope["method"] in ("GET", "HEAD"):
            if not self._failure and not self._service.pool.draining:
                await _respond(send, "http.response", 204, b"")
                return
            body = {"status": "unhealthy", "reason": self._failure or "the server is draining"}
        else:
            body = {"detail": self._failure or _NOT_YET, "error_type": "AppNotLoaded"}
        await _respond(send, "http.response", 503, json.dumps(body).encode())

    async def _refuse(self, scope: Scope, send: Send) -> None:
        if "websocket.http.response" in scope.get("extensions", {}):
            body = json.dumps({"detail": self._failure or _NOT_YET}).encode()
            await _respond(send, "websocket.http.response", 503, body)
        else:
            await send({"type": "websocket.close", "code": 1013})

    # Life.

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with self.lifespan_context(self):
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        service = self._service
        await service.start()
        bringing_up = asyncio.ensure_future(self._bring_up())
        try:
            if self._admin is not None:
                await self._admin.start()
            yield
        finally:
            for task in (bringing_up, self._neighbours):
                if task is not None:
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
            # Stats are there for as long as there is something to tell.
            await service.stop()
            if self._admin is not None:
                await self._admin.stop()
            if self._prepared is not None:
                self._prepared.release()

    async def _bring_up(self) -> None:
        for pause_s in _pauses():
            try:
                prepared = await self._source.prepare(wait=not self._failure)
            except AppError as error:
                passes, failure = error.passes, str(error)
            except Exception as error:  # noqa: BLE001 - it is told where the app is asked for
                passes, failure = True, f"the app cannot be prepared: {error!r}"
            else:
                self._serve(prepared)
                return
            if failure != self._failure:
                again = f"it is tried again in {pause_s:g} s" if passes else "it is not tried again"
                _log.error("%s: %s; %s", self._source.resource, failure, again)
                self._failure = failure
            if not passes:
                return
            await asyncio.sleep(pause_s)

    def _serve(self, prepared: PreparedApp) -> None:
        service, settings = self._service, self._settings
        pool = service.pool
        self._prepared = prepared
        app = prepared.to_app(settings, settings.app_workers or max(1, pool.stats().gpus.total))
        self._proxy = AppProxy(
            pool.open_app(app),
            limit_of=lambda _scope: settings.call_timeout_s,
            max_body_mb=settings.max_body_mb,
            generated=app.generated,
            draining=lambda: pool.draining,
        )
        if prepared.neighbours is not None:
            self._neighbours = asyncio.ensure_future(prepared.neighbours.run())


def _pauses() -> Iterator[float]:
    yield from _PAUSES_S
    while True:
        yield _PAUSES_S[-1]


async def _respond(send: Send, kind: str, status: int, body: bytes) -> None:
    headers = [] if status == 204 else [_JSON, (b"content-length", b"%d" % len(body))]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": f"{kind}.start", "status": status, "headers": headers})
    await send({"type": f"{kind}.body", "body": body, "more_body": False})
