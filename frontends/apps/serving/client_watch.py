"""Ends proxied requests whose client disconnects, or whose client's time limit has passed.

Most requests end within milliseconds, so nothing is set up for each request. A sweep finds requests
that last longer, and gives each a task that waits for its client to disconnect.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final

from starlette.types import Receive

from flashpool.frontends.http_server.request_cycle import has_left

#: Seconds between sweeps, and the age at which a request's client is watched.
SWEEP_S: Final = 0.05


class WatchedClient:
    """The client of one request."""

    __slots__ = ("deadline", "gone", "late", "receive", "since", "watched", "watcher")

    def __init__(
        self, receive: Receive, gone: Callable[[], None], late: Callable[[], None]
    ) -> None:
        self.receive = receive
        #: Called when the client has disconnected, and when its time limit has passed.
        self.gone = gone
        self.late = late
        self.since = 0.0
        self.deadline = math.inf
        #: Whether a task waits for the client to disconnect.
        self.watched = False
        self.watcher: asyncio.Task[None] | None = None

    async def until_gone(self) -> None:
        """Wait until the client of a complete request disconnects."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.gone()


class ClientWatch:
    """The clients of all unfinished requests."""

    def __init__(self) -> None:
        self._clients: dict[WatchedClient, None] = {}
        self._sweeping = False

    def add(self, client: WatchedClient) -> None:
        """Watch a client from now on."""
        loop = asyncio.get_running_loop()
        client.since = loop.time()
        self._clients[client] = None
        if not self._sweeping:
            self._sweeping = True
            loop.call_later(SWEEP_S, self._sweep, loop)

    def remove(self, client: WatchedClient) -> None:
        """Stop watching the client of a request that has ended."""
        self._clients.pop(client, None)
        watcher, client.watcher = client.watcher, None
        if watcher is not None:
            watcher.cancel()

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for client in list(self._clients):
            if client.deadline <= now:
                client.deadline = math.inf
                client.late()
            elif client.watched:
                # The body may wait for room; then no task receives from the client.
                if client.watcher is not None and has_left(client.receive):
                    client.gone()
            elif client.since <= now - SWEEP_S:
                client.watched = True
                client.watcher = asyncio.ensure_future(client.until_gone())
        self._sweeping = bool(self._clients)
        if self._sweeping:
            loop.call_later(SWEEP_S, self._sweep, loop)
