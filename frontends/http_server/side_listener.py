"""A second listener of a server, on a socket of its own."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from flashpool.frontends.settings.table import Settings

from .connection import Connection
from .listener import Listener


class SideListener:
    """Starts and stops such a listener."""

    def __init__(
        self,
        app: Any,
        settings: Settings,
        sock: socket.socket,
        connection: type[Connection] = Connection,
    ) -> None:
        self._listener = Listener(app, settings, connection)
        self._sock = sock
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start serving."""
        self._serving = asyncio.ensure_future(self._listener.serve(sockets=[self._sock]))

    async def stop(self) -> None:
        """Close every connection and the socket."""
        if self._serving is not None:
            self._listener.should_exit = True
            await self._serving
        self._sock.close()


class WithoutLife:
    """Wraps an application whose start and stop another listener handles."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; answer the lifespan without the application."""
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        for what in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{what}.complete"})
