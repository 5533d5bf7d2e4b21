"""A WebSocket client for tests that are not coroutines."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from e2e.server import ServerProcess
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

Talk = Callable[[ClientConnection], Awaitable[Any]]


def talked(server: ServerProcess, path: str, talk: Talk, **options: Any) -> Any:
    """Return a talk's result, how the server closed it, or the answer to a refused handshake."""

    async def run() -> Any:
        url = server.url.replace("http", "ws", 1) + path
        try:
            async with connect(url, proxy=None, max_size=None, **options) as client:
                try:
                    return await asyncio.wait_for(talk(client), 30)
                except ConnectionClosed as closed:
                    code, reason = client.close_code, client.close_reason
                    return "closed", code, reason, closed.rcvd is not None
        except InvalidStatus as refused:
            response = refused.response
            headers = {k.lower(): v for k, v in response.headers.raw_items()}
            # Of the server's own.
            headers.pop("x-request-id", None)
            return response.status_code, {**headers, "date": ""}, response.body

    return asyncio.run(run())
