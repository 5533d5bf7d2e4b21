"""Sockets that write arbitrary bytes, and read only when told to."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from support.frontends.wire import PATIENCE_S, Client

PING = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
#: Runs the main function of a test, on the loop that the fixture ``run`` has for it.
Run = Callable[[Coroutine[Any, Any, None]], None]


@contextlib.asynccontextmanager
async def raw(client: Client, receive_buffer: int = 0) -> AsyncIterator[socket.socket]:
    """Open a socket that reads only when told to."""
    with await connected(client, receive_buffer) as sock:
        yield sock


async def connected(client: Client, receive_buffer: int = 0) -> socket.socket:
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", client.port))
    return sock


async def send(sock: socket.socket, data: bytes) -> None:
    await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(sock, data), PATIENCE_S)


# A client that does not read


def closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(65536) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
