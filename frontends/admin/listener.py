"""The admin listener's life: a socket bound early, a token, and a server on the pool's loop.

The listener shares the supervisor's loop, and so needs no lock: a snapshot is taken between two
events. Large answers are encoded in threads, and a slow reader blocks only its own connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterator

from flashpool.frontends.exposure import is_loopback
from flashpool.frontends.http_server.connection import AdminConnection
from flashpool.frontends.http_server.listener import Listener, ListenError, bind, url
from flashpool.frontends.settings.table import Settings

from . import state_files
from .app import AdminApp
from .gate import Gate
from .served import Served
from .sessions import Sessions

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def bind_admin(settings: Settings) -> Iterator[socket.socket | None]:
    """Provide the admin socket, or None if switched off; close it at the end.

    Without FLASHPOOL_ADMIN_PORT, a free port replaces the default port if that is in use.
    """
    sock = open_socket(settings)
    try:
        yield sock
    finally:
        if sock is not None:
            sock.close()


def open_socket(settings: Settings) -> socket.socket | None:
    """Bind a socket for the admin listener; the caller closes it."""
    if settings.admin_port is None:
        return None
    try:
        return bind(settings.admin_host, settings.admin_port, "FLASHPOOL_ADMIN_PORT")
    except ListenError:
        if settings.origins.get("admin_port") == "environment":
            raise
        # A second server on a machine should not need a second setting.
        return bind(settings.admin_host, 0, "FLASHPOOL_ADMIN_HOST")


def stats_url(sock: socket.socket | None) -> str:
    """Return the URL of the statistics, for people."""
    return "off" if sock is None else f"{url(sock)}/stats"


class Admin:
    """One admin listener. Without a socket, `start` does nothing."""

    def __init__(self, served: Served, sock: socket.socket | None) -> None:
        self._served = served
        self._sock = sock
        self._serving: asyncio.Task[None] | None = None
        self._listener: Listener | None = None
        self._address: state_files.AdminAddress | None = None

    async def start(self) -> None:
        """Begin to serve."""
        if self._sock is None:
            return
        settings = self._served.settings
        token = await asyncio.to_thread(_token, settings)
        loopback = is_loopback(settings.admin_host)
        gate = Gate(token, Sessions(), loopback=loopback, is_open=settings.allow_open)
        self._listener = Listener(AdminApp(self._served, gate), settings, AdminConnection)
        self._serving = asyncio.ensure_future(self._listener.serve(sockets=[self._sock]))
        self._address = address = state_files.AdminAddress(
            pid=os.getpid(),
            url=url(self._sock),
            mode=self._served.mode,
            started_at=self._served.started_at,
        )
        await asyncio.to_thread(state_files.announce, settings, address)

    async def stop(self) -> None:
        """Close every connection and the socket."""
        if self._sock is None:
            return
        if self._serving is not None and self._listener is not None:
            self._served.stopping.set()
            self._listener.should_exit = True
            await self._serving
        if self._address is not None:
            await asyncio.to_thread(state_files.withdraw, self._served.settings, self._address)
        self._sock.close()


def _token(settings: Settings) -> str:
    """Return the token of the settings, else that of the state directory, created if missing."""
    if settings.admin_token:
        return settings.admin_token
    try:
        token, new = state_files.made_token(settings)
    except OSError as error:
        _log.warning(
            "The admin token cannot be saved (%s), so no client can know it: set "
            "FLASHPOOL_ADMIN_TOKEN or FLASHPOOL_ADMIN_TOKEN_FILE to use the routes that "
            "need it",
            error,
        )
        return secrets.token_urlsafe(32)
    path = state_files.state_folder(settings) / "admin" / "token"
    _log.info("The admin token is in %s", path)
    if new and sys.stderr.isatty():
        # Only once, and only to a terminal, never to a log that is kept.
        sys.stderr.write(f"admin token: {token}\n")
    return token
