"""Requests that end before their answers do, and the effect on their workers.

leave   the client has disconnected: the app is notified, and after the grace the task is cancelled
late    the time limit has passed: the task is cancelled at once; if the task still runs after the
        grace, the worker is killed
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

#: The close code of a WebSocket that was idle for too long.
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
        #: Interrupted requests whose worker is not killed while it has other requests.
        self._sparing: set[int] = set()

    def leave(self, number: int, code: int = 1006, reason: str = "") -> None:
        """Handle a client's disconnect; of a WebSocket: its close, with this code and reason."""
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
        """Close all WebSockets of the app."""
        for live in self._traffic:
            if live.socket and live.sink is not None:
                live.sink.closed(code, reason)  # type: ignore[attr-defined]
                self.leave(live.number, code, reason)

    def late(self, live: LiveRequest) -> None:
        """End a request that exceeded a time limit."""
        number, sink = live.number, live.sink
        end = endings.late(live, self._app.queue_timeout_s)
        if live.socket:
            # An idle WebSocket delays nothing: it is closed, as if its client had disconnected.
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
        """Cancel a request, and kill its worker if the request has not ended after the grace.

        ``spares``: do not kill the worker while it has other requests.
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

    # Commands of the table.

    def interrupt(self, command: states.Interrupt) -> None:
        """Cancel the task of a request, and check after the grace whether it has ended."""
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
        """Kill a worker in which a cancelled request has not ended within the grace."""
        live = self._traffic.get(command.culprit)
        what = endings.target(live.fields) if live is not None else "a request"
        message = (
            f"the app's worker was ended, because {what} ran longer than its limit and did not "
            f"end within the grace of {self._grace_s:g} s after its task was cancelled"
        )
        _log.warning("%s: %s", self._app.name, message)
        self._workers.kill(command.worker, Stop(error_type="Timeout", message=message, details={}))
