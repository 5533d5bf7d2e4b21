"""One app: its requests to its workers, and the answers to whoever asked (`apps.AppService`).

    AppService.request --> AppTable.requested --SendRequest--> REQUEST --> worker
         sink <-- response, piece <-- RESPONSE, PIECE <---------------'
         sink <-- ended <-- REQUEST_OVER, a death (`workers`), a clock (`requests`)

The table decides, and this carries out. A request has one end: what comes for it later is of no
concern to anybody but the table, which counts what a worker still has to do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from flashpool.pool._child import app_messages, wire
from flashpool.pool.apps import App, AppEnd, AppRequest, AppSink, AppState, EndKind
from flashpool.pool.errors import FlashpoolError
from flashpool.pool.exit_causes import Cause, Stop
from flashpool.pool.stats import AppStats, AppWorkerStats
from flashpool.pool.workers.poller import Clock

from . import failures, states
from .requests import LiveRequest
from .table import AppTable
from .traffic import AppTraffic
from .workers import AppWorkers

_log = logging.getLogger(__name__)

_ENDS = {
    app_messages.UNANSWERED: EndKind.RAISED,
    app_messages.CANCELLED: EndKind.RAISED,
    app_messages.CUT: EndKind.CUT,
    app_messages.FINE: EndKind.RAISED,
}
#: Tasks that may go on behind their answers, of all workers.
_LINGERING = 100_000
#: In place of the environment's name, until it is known.
Find = Callable[[], Awaitable[str]]


class AppRunner:
    """One app that is served."""

    def __init__(
        self,
        app: App,
        *,
        grace_s: float,
        now: Clock,
        find: Find,
        make_workers: Callable[[AppRunner], AppWorkers],
        changed: Callable[[], None],
    ) -> None:
        """``find`` makes sure of the app's environment, and names it."""
        self.app = app
        self._grace_s = grace_s
        self._find = find
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self.table = AppTable(
            states.AppPolicy(
                workers=app.workers, concurrency=app.concurrency, queue_limit=app.queue_limit
            )
        )
        self.workers = make_workers(self)
        self._now = now
        self._traffic = AppTraffic(
            now,
            send=self.workers.send,
            late=self._late,
            answered=lambda live: self._do(self.table.answered(live.number)),
            empty=changed,
        )
        #: As whoever asks for answers knows it.
        self.body = self._traffic.body
        self.credit = self._traffic.credit
        #: Tasks that outlived their requests' answers, and the workers they are in.
        self._lingering: dict[int, int] = {}
        self._causes: dict[int, Cause] = {}
        #: Whether the machine, and not the app, is the cause of its failure.
        self.failure_passes = False
        #: Interrupted requests for which no worker is ended that others are in.
        self._sparing: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._carry_out: dict[type[states.Command], Callable[[Any], None]] = {
            states.StartWorker: self._start_worker,
            states.TryLater: self._try_later,
            states.SendRequest: self._send,
            states.TurnAway: self._refuse,
            states.Hopeless: self._give_up,
            states.LoseRequest: self._lose,
            states.Interrupt: self._interrupt,
            states.KillWorker: self._kill,
        }

    # The service.

    @property
    def state(self) -> AppState:
        """Whether requests are served."""
        if self.table.is_served:
            return AppState.SERVED
        return AppState.FAILED if self.table.failure else AppState.LOADING

    @property
    def failure(self) -> str:
        """Why it cannot be loaded, or nothing."""
        return "" if self.table.is_served else self.table.failure

    @property
    def busy(self) -> int:
        """Requests that have not ended, and tasks of those that have."""
        return len(self._traffic) + len(self._lingering)

    def request(self, request: AppRequest, sink: AppSink) -> int:
        """Take a request."""
        live = self._traffic.add(request, sink)
        number = live.number
        if self.table.closing:
            self._traffic.end(live, _refused("the server is stopping"))
            return number
        self._do(self.table.requested(number))
        if live.worker is None and self._traffic.get(number) is live:
            self._traffic.clock.set(live, self.app.queue_timeout_s)
        return number

    def leave(self, number: int) -> None:
        """Nobody waits for the answer any more: the app hears of it, then its task is cancelled."""
        live = self._traffic.get(number)
        if live is None or live.sink is None:
            return
        live.sink = None
        self._traffic.clock.forget(live)
        if live.worker is None:
            self.table.withdrawn(number)
            self._traffic.forget(live)
            return
        self.table.abandoned(number)
        self.workers.send(live.worker, wire.DISCONNECT, wire.NUMBER.pack(number))
        self._loop.call_later(self._grace_s, self._cancel_left, number)

    def _cancel_left(self, number: int) -> None:
        live = self._traffic.get(number)
        if live is not None and live.worker is not None:
            self.workers.send(live.worker, wire.CANCEL, wire.NUMBER.pack(number))

    def interrupt(self, number: int, *, spares: bool) -> None:
        """Cancel a request, and end its worker if that does not help within the grace."""
        live = self._traffic.get(number)
        if live is None:
            return
        live.sink = None
        self._traffic.clock.forget(live)
        if live.worker is None:
            self.table.withdrawn(number)
            self._traffic.forget(live)
            return
        if spares:
            self._sparing.add(number)
        began = self.workers[live.worker].has_begun(live.slot, number)
        self._do(self.table.late(number, began=began))

    # Life.

    def start(self) -> None:
        """Have its workers."""
        self._do(self.table.start())

    def close(self) -> None:
        """Take no more requests, and let the workers shut down."""
        if self.table.closing:
            return
        self.table.closing = True
        for live in self._traffic:
            if live.worker is None:
                self.table.withdrawn(live.number)
                self._traffic.end(live, _refused("the server is stopping"))
        self.workers.abandon_loads()
        for number in list(self.table.workers):
            self.workers.close(number)

    def finish(self) -> None:
        """The pool stops now: end what is left."""
        for live in self._traffic:
            self._traffic.end(live, _refused("the server stopped before it was answered"))
        self._traffic.clock.close()
        for task in self._tasks:
            task.cancel()

    def stats(self) -> AppStats:
        """The app as it is now."""
        table = self.table
        return AppStats(
            app=self.app.name,
            state=self.state.value,
            failure=self.failure or None,
            waiting=len(table.waiting),
            workers=[self._worker_stats(row) for row in table.workers.values()],
            deaths=table.deaths,
            last_death=table.last_death or None,
        )

    def _worker_stats(self, row: states.AppWorkerRow) -> AppWorkerStats:
        process = self.workers.get(row.worker)
        return AppWorkerStats(
            generation=row.worker,
            state=row.state.value,
            pid=None if process is None else process.worker.pid,
            loaded_at=None if process is None else process.loaded_at,
            requests=row.load,
            served=row.served,
        )

    # What the table decided.

    def _do(self, commands: Iterable[states.Command]) -> None:
        for command in commands:
            self._carry_out[type(command)](command)

    def _start_worker(self, command: states.StartWorker) -> None:
        task = asyncio.ensure_future(self._find_and_start(command.worker))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _find_and_start(self, number: int) -> None:
        try:
            environment = await self._find()
        except FlashpoolError as error:
            message = f"its environment cannot be had: {error.message}"
            _log.error("%s: %s", self.app.name, message)
            cause = Cause(error_type=type(error).__name__, message=message, details=error.details)
            self.worker_died(number, cause, ours=False)
            return
        if not self.table.closing:
            self.workers.start(number, environment)

    def _try_later(self, command: states.TryLater) -> None:
        self._loop.call_later(command.seconds, lambda: self._do(self.table.retry()))

    def _send(self, command: states.SendRequest) -> None:
        self._traffic.hand_over(self._traffic[command.request], command.worker, command.slot)

    def _refuse(self, command: states.TurnAway) -> None:
        waiting = self.app.queue_limit
        self._traffic.end(
            self._traffic[command.request], _refused(f"{waiting} requests wait already")
        )

    def _give_up(self, command: states.Hopeless) -> None:
        message = f"the application cannot be loaded: {self.table.failure}"
        end = AppEnd(kind=EndKind.FAILED, error_type="AppNotLoaded", message=message)
        self._traffic.end(self._traffic[command.request], end)

    def _lose(self, command: states.LoseRequest) -> None:
        live = self._traffic.get(command.request)
        if live is None:
            return  # the pool stops, and has ended it
        assert live.worker is not None
        cause = self._causes[live.worker]
        if command.sibling:
            message = f"its worker was ended because of another request: {cause.message}"
            kind, error_type = EndKind.LOST, "ResidentLost"
        else:
            message, kind, error_type = cause.message, EndKind.CRASHED, cause.error_type
        self._traffic.end(
            live, AppEnd(kind=kind, error_type=error_type, message=message, began=command.began)
        )

    def _interrupt(self, command: states.Interrupt) -> None:
        number = command.request
        self.workers.send(command.worker, wire.CANCEL, wire.NUMBER.pack(number))
        self._loop.call_later(self._grace_s, self._grace_over, number)

    def _grace_over(self, number: int) -> None:
        if number in self._sparing and self.table.has_others(number):
            self._loop.call_later(self._grace_s, self._grace_over, number)
            return
        self._sparing.discard(number)
        self._do(self.table.grace_over(number))

    def _kill(self, command: states.KillWorker) -> None:
        live = self._traffic.get(command.culprit)
        what = _target(live.fields) if live is not None else "a request"
        message = (
            f"the app's worker was ended, because {what} ran longer than its limit and did not "
            f"end within the grace of {self._grace_s:g} s after its task was cancelled"
        )
        _log.warning("%s: %s", self.app.name, message)
        self.workers.kill(command.worker, Stop(error_type="Timeout", message=message, details={}))

    # What is heard of workers (`workers.AppNews`).

    def worker_loaded(self, worker: int) -> None:
        """It takes requests."""
        self._do(self.table.loaded(worker))
        self._changed()

    def worker_sent(self, worker: int, frame: wire.Frame) -> None:
        """A frame of one of its requests.

        Raises:
            BadFrame: it is none that a worker sends.
        """
        if self._traffic.take(worker, frame):
            return
        if frame.kind == wire.LINGERS:
            number, _ = wire.split_number(frame.meta)
            if number in self._lingering or len(self._lingering) > _LINGERING:
                raise wire.BadFrame("a request that lingers twice, or too many that do")
            self._lingering[number] = worker
            self.table.lingers(worker)
        elif frame.kind == wire.REQUEST_OVER:
            number, how = app_messages.unpack_flags(frame.meta)
            self._on_over(worker, number, how)
        else:
            raise wire.BadFrame(f"a frame of kind {frame.kind}, which no app sends")

    def _on_over(self, worker: int, number: int, how: int) -> None:
        if self._lingering.pop(number, None) is not None:
            self._do(self.table.no_longer(worker))
            self._changed()
            return
        live = self._traffic.of(worker, number)
        if live is None or how not in _ENDS:
            return
        error_type = "Cancelled" if how == app_messages.CANCELLED else "AppRaised"
        self._traffic.end(live, AppEnd(kind=_ENDS[how], error_type=error_type, began=True))
        self._do(self.table.answered(number))

    def worker_died(self, worker: int, cause: Cause, *, ours: bool) -> None:
        """It is dead, or was not to be had."""
        self._causes[worker] = cause
        row = self.table.workers[worker]
        if row.state is states.AppWorkerState.STARTING:
            self.failure_passes = failures.passes(cause)
        begun = set()
        if row.requests:
            process = self.workers[worker]
            begun = {
                number for number, slot in row.requests.items() if process.has_begun(slot, number)
            }
        for number in [one for one, where in self._lingering.items() if where == worker]:
            del self._lingering[number]
        commands = self.table.died(worker, begun, cause.message, self._now(), ours=ours)
        for number in set(row.requests) - begun:
            if (live := self._traffic.get(number)) is not None and not _is_lost(commands, number):
                self._traffic.back_to_queue(live, self.app.queue_timeout_s)
        self._do(commands)
        del self._causes[worker]
        self._changed()

    def worker_gone(self, worker: int) -> None:
        """Its process tree is gone."""

    # Ends.

    def _late(self, live: LiveRequest) -> None:
        number = live.number
        if live.worker is None:
            limit, phase = self.app.queue_timeout_s, "queue"
            what = f"waited for a worker longer than {limit:g} s (FLASHPOOL_QUEUE_TIMEOUT_S)"
        else:
            limit, phase = live.limit_s, "run"
            stood = " of its answer's next piece" if live.started else ""
            what = f"ran longer than its limit{stood} of {limit:g} s"
        end = AppEnd(
            kind=EndKind.LATE,
            error_type="Timeout",
            message=f"the request {what} (phase: {phase})",
            phase=phase,
        )
        sink, live.sink = live.sink, None
        if live.worker is None:
            self.table.withdrawn(number)
            self._traffic.forget(live)
        else:
            began = self.workers[live.worker].has_begun(live.slot, number)
            self._do(self.table.late(number, began=began))
        if sink is not None:
            sink.ended(end)


def _is_lost(commands: list[states.Command], number: int) -> bool:
    return any(isinstance(one, states.LoseRequest) and one.request == number for one in commands)


def _refused(why: str) -> AppEnd:
    return AppEnd(kind=EndKind.REFUSED, error_type="Overloaded", message=why)


def _target(fields: Iterable[bytes]) -> str:
    """Method and path, for people."""
    _, method, _, path, *_ = fields
    return f"{method.decode()} {path.decode('utf-8', 'backslashreplace')!r}"
