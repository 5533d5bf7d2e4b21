"""uvicorn, with what it lacks: deadlines for receiving, and bounds on what is received.

uvicorn times out connections that idle between requests and no others: a client that
connects and stays silent, or sends a byte now and then, holds its connection for ever.
Here a connection remembers when the message it is receiving began, and one sweep a second
closes those that take too long; no timer is set up for a request.

    connected ----> headers ----> body ----> complete --(next byte)--> headers ...
       |__ header_timeout __|        |
       |____________ message_timeout __|
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import socket
from collections.abc import Iterator
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from flashpool.pool.settings import Settings

log = logging.getLogger(__name__)

#: Bytes of request line and headers.
HEADERS_LIMIT: Final = 64 * 1024
#: Seconds a message may take beyond what the application itself allows.
_MARGIN_S: Final = 5.0
_TICKS_A_SECOND: Final = 10

_CLOSE: Final = b"connection: close\r\ncontent-length: 0\r\n\r\n"
_TOO_SLOW: Final = b"HTTP/1.1 408 Request Timeout\r\n" + _CLOSE
_TOO_LONG: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\n" + _CLOSE


class ListenError(Exception):
    """An address cannot be listened on; the message says which and what to change."""


class Protocol(HttpToolsProtocol):
    """A connection that knows since when it has been receiving a message."""

    #: When the current message began, None between messages.
    since: float | None = None
    in_headers: bool = True
    header_bytes: int = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for the first message, or turn away one connection too many."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self.since = self.loop.time()
        if len(self.connections) > _connection_limit():
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; count while it is in headers."""
        if self.in_headers:
            if self.since is None:
                self.since = self.loop.time()
            self.header_bytes += len(data)
        super().data_received(data)
        if self.header_bytes > HEADERS_LIMIT and self.in_headers:
            self._refuse(_TOO_LONG)

    def on_headers_complete(self) -> None:
        """The body follows, if there is one."""
        self.in_headers = False
        self.header_bytes = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The next byte begins another message."""
        self.in_headers = True
        self.since = None
        super().on_message_complete()

    def overdue(self, now: float, header_limit_s: float, message_limit_s: float) -> bool:
        """Whether the message being received has taken too long."""
        if self.since is None:
            return False
        return now - self.since > (header_limit_s if self.in_headers else message_limit_s)

    def give_up(self) -> None:
        """Close a connection that is overdue."""
        self._refuse(_TOO_SLOW if self.in_headers and self.header_bytes else b"")

    def _refuse(self, response: bytes) -> None:
        if self.transport.is_closing():
            return
        between = getattr(self.cycle, "response_complete", True)
        if response and between:
            self.transport.write(response)
            self.transport.close()
        else:
            # A response may be half written, or its reader asleep: nothing to wait for.
            self.transport.abort()


def _connection_limit() -> int:
    """Half of the descriptors; the pool needs the others."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else max(64, soft // 2)


class Listener(uvicorn.Server):
    """A uvicorn server on a socket made before, which leaves signals alone."""

    def __init__(self, app: Any, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=settings.keepalive_s,
                timeout_graceful_shutdown=2,
            )
        )
        self._header_limit_s = settings.header_timeout_s
        self._message_limit_s = settings.receive_timeout_s + _MARGIN_S

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Whoever runs the listener decides what signals do."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: uvicorn's own housekeeping, and once a second ours."""
        if counter % _TICKS_A_SECOND == 0:
            self._sweep(asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    def _sweep(self, now: float) -> None:
        for connection in list(self.server_state.connections):
            if isinstance(connection, Protocol) and connection.overdue(
                now, self._header_limit_s, self._message_limit_s
            ):
                connection.give_up()


def bind(host: str, port: int, variable: str) -> socket.socket:
    """A listening socket, or a `ListenError` that names the setting to change."""
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
    """Where a socket can be reached from this machine."""
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound, shown
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
