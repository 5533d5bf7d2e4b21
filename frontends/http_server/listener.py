"""uvicorn on an existing socket, with periodic checks of its connections: see `connection`."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import socket
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Final

import uvicorn

from flashpool.frontends.settings.table import Settings
from flashpool.pool.running_time import SLACK_S

from .connection import Connection, Deadlines
from .websocket_connection import WebSocketConnection

_log = logging.getLogger(__name__)

#: Seconds that a message may take beyond FLASHPOOL_RECEIVE_TIMEOUT_S.
_MARGIN_S: Final = 5.0
#: Ticks of 0.1 s between sweeps, so that a disconnect is noticed within a second.
_TICKS_A_SWEEP: Final = 5
_TICK_S: Final = 0.1


#: Whether this context serves a listener of flashpool.
_untold: ContextVar[bool] = ContextVar("_untold", default=False)
_UVICORN: Final = "uvicorn.error"


def _is_told(record: logging.LogRecord) -> bool:
    """Filter uvicorn's log lines in contexts where flashpool reports its listeners itself.

    If uvicorn also hosts the application, each line about start and stop would appear twice.
    """
    return record.levelno > logging.INFO or not _untold.get()


class ListenError(Exception):
    """An address cannot be bound; the message has the address, and what to change."""


class Listener(uvicorn.Server):
    """A uvicorn server on an existing socket, without signal handlers."""

    def __init__(
        self,
        app: Any,
        settings: Settings,
        connection: type[Connection] = Connection,
        *,
        websockets: bool = False,
    ) -> None:
        """``websockets``: whether the application accepts WebSockets."""
        super().__init__(
            uvicorn.Config(
                app,
                http=connection,
                ws=WebSocketConnection if websockets else "none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=2,
            )
        )
        #: When the next sweep is due, on the loop's clock.
        self._due = math.inf
        self._deadlines = Deadlines(
            header_s=settings.header_timeout_s,
            message_s=settings.receive_timeout_s + _MARGIN_S,
            send_s=settings.send_timeout_s,
            idle_s=settings.keepalive_s,
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing: the code that runs the listener handles signals."""
        yield

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until the exit, without uvicorn's lines about start and stop: see `_is_told`."""
        _untold.set(True)
        logging.getLogger(_UVICORN).addFilter(_is_told)
        await super().serve(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Do uvicorn's housekeeping, ten times a second, and a sweep at every fifth tick."""
        if counter % _TICKS_A_SWEEP == 0:
            self._sweep(asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    def _sweep(self, now: float) -> None:
        late_s = now - self._due
        self._due = now + _TICKS_A_SWEEP * _TICK_S
        for connection in list(self.server_state.connections):
            if isinstance(connection, (Connection, WebSocketConnection)):
                if late_s > SLACK_S:
                    # This process was suspended: input that arrived meanwhile is still unread.
                    connection.forgive(late_s)
                connection.check(now, self._deadlines)


def bind(host: str, port: int, variable: str) -> socket.socket:
    """Return a listening socket; a `ListenError` names the setting to change."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)
    except OSError as error:
        raise ListenError(f"Cannot listen on {host}: {error}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(2048)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        reason = "it is in use" if error.errno == errno.EADDRINUSE else str(error)
        raise ListenError(
            f"Cannot listen on {host} port {port}: {reason}; set {variable}"
        ) from error
    return sock


def url(sock: socket.socket) -> str:
    """Return the URL under which this machine reaches a socket."""
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound, shown
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
