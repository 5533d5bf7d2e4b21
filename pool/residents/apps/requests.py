"""The requests of one app that have not ended, and their clocks.

    waiting --sent--> in a worker --response, pieces--> ended
       |                 |
       '-- queue limit   '-- limit: until the answer begins, and again until each further piece

The clock of a request does not count time in which the application waits for the client (to send
the rest of the body, or to read the answer), unless the limit covers the whole request. All clocks
are checked together, some fifty times a second while any runs: most requests end before their first
check, so none has a timer of its own.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final

from flashpool.pool._child import app_messages
from flashpool.pool.apps import AppRequest, AppSink
from flashpool.pool.workers.poller import Clock

#: Seconds between two checks.
LOOK_S: Final = 0.02


class LiveRequest:
    """One request."""

    __slots__ = (
        "deadline",
        "fields",
        "held",
        "isolated",
        "limit_s",
        "more",
        "number",
        "on_demand",
        "out",
        "room",
        "routed",
        "sink",
        "slot",
        "socket",
        "started",
        "whole",
        "worker",
    )

    def __init__(self, number: int, request: AppRequest, sink: AppSink) -> None:
        self.number = number
        self.fields = request.fields
        #: Pieces of the body, for another attempt; None once the request is known to have begun.
        self.held: list[bytes] | None = [request.body]
        self.more = request.more
        self.on_demand = request.on_demand
        self.limit_s = request.limit_s
        self.whole = request.whole
        #: Whether this is a WebSocket's request; its sink is a `SocketSink` then.
        self.socket = request.socket
        #: Whether the rules of its route have been applied.
        self.routed = False
        #: Whether the request gets a process of its own.
        self.isolated = False
        #: None once nobody waits for the answer.
        self.sink: AppSink | None = sink
        #: The worker that has the request, and the request's slot in that worker's ledger.
        self.worker: int | None = None
        self.slot = 0
        self.started = False
        #: Bytes of the body that may still be sent to the worker, and bytes of the answer that the
        #: client has not read.
        self.room = (0 if request.on_demand else app_messages.WINDOW) - len(request.body)
        self.out = 0
        self.deadline = math.inf

    @property
    def waits_for_client(self) -> bool:
        """Return whether the application can only continue once the client sends or reads."""
        return (self.more and self.room > 0) or self.out >= app_messages.WINDOW


class AppClock:
    """Checks the deadlines of requests."""

    def __init__(self, now: Clock, late: Callable[[LiveRequest], None]) -> None:
        self._now = now
        self._late = late
        self._loop = asyncio.get_running_loop()
        self._timed: dict[int, LiveRequest] = {}
        self._next_look: asyncio.TimerHandle | None = None

    def set(self, request: LiveRequest, seconds: float | None) -> None:
        """Set the deadline to ``seconds`` from now; None: no deadline."""
        if seconds is None:
            request.deadline = math.inf
            return
        request.deadline = self._now() + seconds
        self._timed[request.number] = request
        if self._next_look is None:
            self._next_look = self._loop.call_later(LOOK_S, self._look)

    def restart(self, request: LiveRequest) -> None:
        """Restart the limit after progress, unless it covers the whole request."""
        if not request.whole:
            self.set(request, request.limit_s)

    def forget(self, request: LiveRequest) -> None:
        """Forget a request that has ended."""
        self._timed.pop(request.number, None)

    def _look(self) -> None:
        now = self._now()
        for request in [one for one in self._timed.values() if one.deadline <= now]:
            if request.worker is not None and request.waits_for_client and not request.whole:
                self.set(request, request.limit_s)
            else:
                del self._timed[request.number]
                self._late(request)
        self._next_look = self._loop.call_later(LOOK_S, self._look) if self._timed else None

    def close(self) -> None:
        """Stop checking."""
        self._timed.clear()
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
