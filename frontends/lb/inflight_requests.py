"""Requests in progress; ends those whose client is too slow or has disconnected.

A request is *receiving* until its body is complete; then its environment is found and its call
runs. Most requests end within milliseconds, so nothing is set up for each request. A sweep finds
requests that last longer, cuts off those that have been receiving for too long, and gives the
others a task that waits for their client to disconnect.
"""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass
from typing import Final

from starlette.types import Receive

from flashpool.frontends.call_handles import CallHandle
from flashpool.pool.running_time import SLACK_S

#: Seconds between sweeps, and the age at which a running call's client is watched.
SWEEP_S: Final = 0.05


class Cut(enum.Enum):
    """Why this module cancelled the task of a request."""

    OVERDUE = "its body did not arrive in time"
    GONE = "its client went away"


@dataclass(slots=True, eq=False)
class InflightRequest:
    """One request, from its headers to its response."""

    receive: Receive
    task: asyncio.Task[object]
    started: float
    #: Whether the request is complete.
    received: bool = False
    #: The call, after it was submitted to the pool.
    pending: CallHandle | None = None
    #: Set before the task is cancelled.
    cut: Cut | None = None
    #: The task that waits for the client to disconnect, if there is one yet.
    watcher: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """Begin to wait for the client to disconnect."""
        self.watcher = asyncio.ensure_future(self._until_gone())

    async def _until_gone(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        if self.pending is not None:
            self.pending.cancel("the client went away")
        else:
            self.cut_off(Cut.GONE)

    def cut_off(self, why: Cut) -> None:
        """Cancel the task, which finds the reason in ``cut``."""
        self.cut = why
        self.task.cancel()


class InflightRequests:
    """All requests in progress, in the order in which they began."""

    def __init__(self, receive_limit_s: float) -> None:
        self._receive_limit_s = receive_limit_s
        self._unwatched: dict[InflightRequest, None] = {}
        self._sweeping = False
        #: When the next sweep is due, on the loop's clock.
        self._due = 0.0

    def open(self, receive: Receive) -> InflightRequest:
        """Begin a request, in the current task."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        exchange = InflightRequest(receive, task, loop.time())
        self._unwatched[exchange] = None
        if not self._sweeping:
            self._sweep_later(loop)
        return exchange

    def close(self, exchange: InflightRequest) -> None:
        """Forget a request that was answered, or whose client has disconnected."""
        self._unwatched.pop(exchange, None)
        # A cancelled task keeps its frames, and so the request: a reference cycle with the result
        # in it would stay until the next full garbage collection.
        watcher, exchange.watcher = exchange.watcher, None
        if watcher is not None:
            watcher.cancel()
        call, exchange.pending = exchange.pending, None
        if call is not None and not call.outcome.done():
            call.cancel("the server gave up the request")

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        if (late_s := now - self._due) > SLACK_S:
            # This process was suspended: input that arrived meanwhile is still unread.
            for exchange in self._unwatched:
                exchange.started += late_s
        for exchange in self._older_than(now - SWEEP_S):
            if exchange.received:
                del self._unwatched[exchange]
                exchange.watch()
            elif now - exchange.started > self._receive_limit_s:
                del self._unwatched[exchange]
                exchange.cut_off(Cut.OVERDUE)
        self._sweeping = False
        if self._unwatched:
            self._sweep_later(loop)

    def _sweep_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweeping = True
        self._due = loop.time() + SWEEP_S
        loop.call_later(SWEEP_S, self._sweep, loop)

    def _older_than(self, moment: float) -> list[InflightRequest]:
        found = []
        for exchange in self._unwatched:
            if exchange.started > moment:
                break
            found.append(exchange)
        return found
