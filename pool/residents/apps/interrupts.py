"""Requests that end before their answers do, and what that means for their workers.

leave   its client has left: the app hears of it, and after the grace its task is cancelled
late    its time is over: its task is cancelled at once; when that does not end it within the
        grace, its worker is killed, unless nobody else is in its way
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from flashpool.pool._child import wire
from flashpool.pool.apps import App
from flashpool.pool.exit_causes import Stop

from . import endings, states
from .isolated import IsolatedRequests
from .requests import LiveRequest
from .table import AppTable
from .traffic import AppTraffic
from .workers import AppWorkers

_log = logging.getLogger(__name__)

#: The code that a WebSocket is closed with because nothing happens on it.
_IDLE = 1001


class Interrupts:
    """The interrupts of one app."""

    def __init__(
        self,
        app: App,
        *,
        grace_s: float,
        table: AppTable,
        traffic: AppTraffic,
        workers: AppWorkers,
        isolated: IsolatedRequests,
        do: Callable[[Iterable[states.Command]], None],
    ) -> None:
        self._app = app
        self._grace_s = grace_s
        self._table = table
        self._traffic = traffic
        self._workers = workers
        self._isolated = isolated
        self._do = do
        self._loop = asyncio.get_running_loop()
        #: Interrupted requests for which no worker is ended that others are in.
        self._sparing: set[int] = set()

    def leave(self, number: int, code: int = 1006, reason: str = "") -> None:
        """Nobody waits for the answer any more; a WebSocket's client has closed it so."""
        live = self._traffic.get(number)
        if live is None or live.sink is None:
            return
        live.sink = None
        self._traffic.clock.forget(live)
        if live.isolated:
            self._isolated.leave(live, code, reason)
            return
        if live.worker is None:
            self._table.withdrawn(number)
            self._traffic.forget(live)
            return
        self._table.abandoned(number)
        if live.socket:
            self._traffic.sockets.close(live, code, reason)
        else:
            self._workers.send(live.worker, wire.DISCONNECT, wire.NUMBER.pack(number))
        self._loop.call_later(self._grace_s, self._cancel_left, number)

    def _cancel_left(self, number: int) -> None:
        live = self._traffic.get(number)
        if live is not None and live.worker is not None:
            self._workers.send(live.worker, wire.CANCEL, wire.NUMBER.pack(number))

    def end_sockets(self, code: int, reason: str) -> None:
        """Close all WebSockets, which would not end by themselves."""
        for live in self._traffic:
            if live.socket and live.sink is not None:
                live.sink.closed(code, reason)  # type: ignore[attr-defined]
                self.leave(live.number, code, reason)

    def late(self, live: LiveRequest) -> None:
        """Handle a request whose time is over."""
        number, sink = live.number, live.sink
        end = endings.late(live, self._app.queue_timeout_s)
        if live.socket:
            # It delays nothing: it is closed, as if its client had left.
            self.leave(number, _IDLE, end.message)
        elif live.isolated:
            live.sink = None
            self._isolated.late(live)
        elif live.worker is None:
            self._table.withdrawn(number)
            self._traffic.forget(live)
        else:
            live.sink = None
            began = self._workers[live.worker].has_begun(live.slot, number)
            self._do(self._table.late(number, began=began))
        if sink is not None:
            sink.ended(end)

    def ask(self, number: int, *, spares: bool) -> None:
        """Cancel a request, and end its worker if that does not help within the grace.

        ``spares``: not while others are in that worker.
        """
        live = self._traffic.get(number)
        if live is None:
            return
        live.sink = None
        self._traffic.clock.forget(live)
        if live.worker is None:
            self._table.withdrawn(number)
            self._traffic.forget(live)
            return
        if spares:
            self._sparing.add(number)
        began = self._workers[live.worker].has_begun(live.slot, number)
        self._do(self._table.late(number, began=began))

    # What the table decided.

    def interrupt(self, command: states.Interrupt) -> None:
        """Cancel its task, and check again after the grace."""
        number = command.request
        self._workers.send(command.worker, wire.CANCEL, wire.NUMBER.pack(number))
        self._loop.call_later(self._grace_s, self._grace_over, number)

    def _grace_over(self, number: int) -> None:
        if number in self._sparing and self._table.has_others(number):
            self._loop.call_later(self._grace_s, self._grace_over, number)
            return
        self._sparing.discard(number)
        self._do(self._table.grace_over(number))

    def kill(self, command: states.KillWorker) -> None:
        """Kill a worker that a request does not leave."""
        live = self._traffic.get(command.culprit)
        what = endings.target(live.fields) if live is not None else "a request"
        message = (
            f"the app's worker was ended, because {what} ran longer than its limit and did not "
            f"end within the grace of {self._grace_s:g} s after its task was cancelled"
        )
        _log.warning("%s: %s", self._app.name, message)
        self._workers.kill(command.worker, Stop(error_type="Timeout", message=message, details={}))
