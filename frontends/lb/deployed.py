"""``flashpool serve app``: a deployed app from its unpacked artifact to a process that ends with 0.

    folder, resource --> App --> pool.open_app --> AppProxy on our listener --> signal: drain, stop

The server's life is that of `server`, and so are its deadlines; what is served is the app's.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from flashpool.frontends.admin import Admin, Served, bind_admin
from flashpool.frontends.apps.serving.asgi_proxy import AppProxy
from flashpool.frontends.assembly import make_service
from flashpool.frontends.http_server.listener import bind
from flashpool.frontends.server_process import give_way, harden, run_loop
from flashpool.frontends.service import Service
from flashpool.frontends.settings.table import Settings
from flashpool.pool.apps import App

from .server import LbServer

_HANDLER: Final = "handler_{}.py"
#: What code of an app may know of where it runs, where the server knows it.
_KNOWN: Final = (
    *("RUNPOD_ENDPOINT_ID", "RUNPOD_POD_ID", "RUNPOD_API_KEY"),
    *("FLASH_APP", "FLASH_ENV", "FLASH_ENVIRONMENT_ID"),
)


class AppNotThere(Exception):
    """The folder has no such app; the message says what it has."""


def find_resource(folder: Path, resource: str | None) -> str:
    """The resource to serve: the one that is named, or the only one.

    Raises:
        AppNotThere: there is none, or more than one.
    """
    try:
        names = sorted(path.name[8:-3] for path in folder.glob(_HANDLER.format("*")))
    except OSError as error:
        raise AppNotThere(f"{folder} cannot be read: {error}") from error
    there = f"{folder} has handlers of: {', '.join(names) or 'none'}"
    if resource is None:
        if len(names) == 1:
            return names[0]
        raise AppNotThere(f"{there}. Name one with --resource")
    if resource not in names:
        raise AppNotThere(f"There is no resource {resource!r}: {there}")
    return resource


def app_of(settings: Settings, folder: Path, resource: str, workers: int) -> App:
    """The app of a resource."""
    config = settings.to_pool_config()
    return App(
        name=resource,
        directory=str(folder),
        file=_HANDLER.format(resource),
        env=_variables(resource, os.environ),
        memory_mb=config.memory_mb,
        workers=workers,
        concurrency=settings.app_concurrency,
        threads=settings.app_threads,
        queue_limit=settings.queue_limit,
        queue_timeout_s=settings.queue_timeout_s,
        start_timeout_s=settings.app_start_timeout_s,
    )


def _variables(resource: str, environ: Mapping[str, str]) -> dict[str, str]:
    found = {name: environ[name] for name in _KNOWN if environ.get(name)}
    if not ("RUNPOD_ENDPOINT_ID" in found or "RUNPOD_POD_ID" in found):
        # Without it the client's library takes each function for one to call elsewhere.
        found["RUNPOD_ENDPOINT_ID"] = "local"
    return {**found, "FLASH_RESOURCE_NAME": resource}


class ServedApp:
    """The ASGI application: the pool's life as its lifespan, and requests to the proxy."""

    def __init__(
        self, service: Service, settings: Settings, admin: Admin, folder: Path, resource: str
    ) -> None:
        self._service = service
        self._settings = settings
        self._admin = admin
        self._folder = folder
        self._resource = resource
        self._proxy: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the lifespan."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self._proxy is not None:
            await self._proxy(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with self._running():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        service, settings = self._service, self._settings
        await service.start()
        try:
            pool = service.pool
            workers = settings.app_workers or max(1, pool.stats().gpus.total)
            app = app_of(settings, self._folder, self._resource, workers)
            self._proxy = AppProxy(
                pool.open_app(app),
                limit_of=lambda _scope: settings.call_timeout_s,
                max_body_mb=settings.max_body_mb,
                generated=app.generated,
                draining=lambda: pool.draining,
                access_log=settings.access_log,
            )
            await self._admin.start()
            yield
        finally:
            # Stats are there for as long as there is something to tell.
            await service.stop()
            await self._admin.stop()


def serve_app(
    settings: Settings,
    folder: Path,
    resource: str | None,
    announce: Callable[[str, socket.socket, socket.socket | None], None],
    *,
    port_setting: str = "FLASHPOOL_PORT",
) -> None:
    """Serve until a signal. ``announce`` is called with the resource and both sockets once it listens."""
    folder = folder.resolve()
    name = find_resource(folder, resource)
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(bind(settings.host, settings.port, port_setting))
        admin_sock = stack.enter_context(bind_admin(settings))
        harden()
        give_way()
        run_loop(_serve(settings, folder, name, sock, admin_sock, announce))


async def _serve(
    settings: Settings,
    folder: Path,
    resource: str,
    sock: socket.socket,
    admin_sock: socket.socket | None,
    announce: Callable[[str, socket.socket, socket.socket | None], None],
) -> None:
    service = make_service(settings, settings.result_limit_mb * 1024 * 1024)
    admin = Admin(Served.of(service, settings, "app"), admin_sock)
    app = ServedApp(service, settings, admin, folder, resource)
    server = LbServer(app, service, settings, lambda: announce(resource, sock, admin_sock))
    await server.serve(sockets=[sock])
