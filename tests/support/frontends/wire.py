"""A listener over a backend, and a client that writes arbitrary bytes."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any, NamedTuple

from flashpool.frontends.http_server.listener import Listener, bind
from flashpool.frontends.lb.app import create_app
from flashpool.frontends.service import Service
from flashpool.frontends.settings.table import Settings
from flashpool.pool.backend import Backend
from support.waiting import PATIENCE, until

BODY = json.dumps({"function_name": "f", "function_code": "def f(): pass"}).encode()
#: The longest that a test waits for bytes that must arrive, in seconds.
PATIENCE_S = 25.0 * PATIENCE


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        decoded: dict[str, Any] = json.loads(self.body)
        return decoded


class Client:
    def __init__(self, port: int) -> None:
        self.port = port

    @contextlib.asynccontextmanager
    async def connect(
        self,
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def send(self, data: bytes) -> Reply:
        async with self.connect() as (reader, writer):
            writer.write(data)
            return await read_reply(reader)

    async def execute(self, body: bytes = BODY, **headers: str) -> Reply:
        return await self.send(post(body, **headers))

    async def get(self, path: str, method: str = "GET") -> Reply:
        async with self.connect() as (reader, writer):
            writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            return await read_reply(reader, body=method != "HEAD")


def post(body: bytes, **headers: str) -> bytes:
    lines = {"Host": "x", "Content-Length": str(len(body)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return b"POST /execute HTTP/1.1\r\n" + head.encode() + b"\r\n" + body


async def read_reply(reader: asyncio.StreamReader, *, body: bool = True) -> Reply:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
    first, *lines = head.decode().rstrip("\r\n").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    length = int(headers.get("content-length", "0")) if body else 0
    return Reply(
        int(first.split()[1]),
        headers,
        await asyncio.wait_for(reader.readexactly(length), PATIENCE_S),
    )


async def at_end(reader: asyncio.StreamReader) -> bytes:
    """Return everything received until the other side closes, which it must."""
    try:
        return await asyncio.wait_for(reader.read(), PATIENCE_S)
    except ConnectionResetError:
        return b""


@contextlib.asynccontextmanager
async def serving(pool: Backend, **variables: str) -> AsyncIterator[Client]:
    settings = Settings.from_environ(variables)
    service = Service(pool, result_limit=settings.result_limit_mb * 1024 * 1024)
    with bind("127.0.0.1", 0, "FLASHPOOL_PORT") as sock:
        listener = Listener(create_app(service, settings), settings)
        serve = asyncio.ensure_future(listener.serve(sockets=[sock]))
        await until(lambda: listener.started)
        try:
            yield Client(sock.getsockname()[1])
        finally:
            listener.should_exit = True
            await serve


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 50))
