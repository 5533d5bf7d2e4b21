"""One app: sends requests to its workers, and answers to the senders (`apps.AppService`).

    AppService.request --> AppTable.requested --SendRequest--> REQUEST --> worker
         sink <-- response, piece <-- RESPONSE, PIECE <---------------'
         sink <-- ended <-- REQUEST_OVER, a death (`workers`), a clock (`requests`)

The table decides, and this class acts. A request ends once. Later frames for the request concern
only the table, which counts what each worker still has to do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

from flashpool.pool._child import app_messages, wire
from flashpool.pool.apps import App, AppRequest, AppSink, AppState
from flashpool.pool.errors import FlashpoolError
from flashpool.pool.exit_causes import Cause
from flashpool.pool.stats import AppStats
from flashpool.pool.workers.poller import Clock

from . import endings, failures, snapshot, states
from .interrupts import Interrupts
from .isolated import IsolatedRequests
from .news import SplitNews
from .requests import LiveRequest
from .retirement import Retirement, SettlingWaiters
from .routing import AppRouting, Routes
from .table import AppTable
from .traffic import AppTraffic
from .workers import AppNews, AppWorkers

_log = logging.getLogger(__name__)

#: Most tasks, of all workers, that may continue after their answers.
_LINGERING = 100_000
#: Builds an app's environment if necessary, and returns the environment's name.
Find = Callable[[App], Awaitable[str]]


class AppRunner:
    """One app that is served."""

    def __init__(
        self,
        app: App,
        *,
        grace_s: float,
        now: Clock,
        find: Find,
        numbers: Iterator[int],
        make_workers: Callable[[AppNews], AppWorkers],
        changed: Callable[[], None],
    ) -> None:
        """``find`` makes sure that an app's environment exists, and returns the environment's name;
        ``numbers`` yields numbers for workers.
        """
        self.app = app
        self._find = find
        self._changed = changed
        self._waiters = SettlingWaiters()
        self._retirement = Retirement(
            self.close, lambda: self._cut("the app was replaced (FLASHPOOL_DRAIN_S)")
        )
        self._note: str | None = None
        self._loop = asyncio.get_running_loop()
        self.table = AppTable(
            states.AppPolicy(
                workers=app.workers,
                concurrency=app.concurrency,
                websockets=app.websockets,
                queue_limit=app.queue_limit,
            ),
            numbers,
        )
        self._news = news = SplitNews(self)
        self.workers = make_workers(news)
        self._now = now
        self._routing = AppRouting(app)
        self._traffic = AppTraffic(
            now,
            send=self.workers.send,
            late=self._late,
            answered=lambda live: self._do(self.table.answered(live.number)),
            empty=self._look_around,
        )
        news.isolated = self._isolated = IsolatedRequests(
            app,
            grace_s=grace_s,
            numbers=self.table.numbers,
            traffic=self._traffic,
            workers=self.workers,
            start=lambda worker: self._begin_start(worker, once=True),
        )
        self._interrupts = Interrupts(
            app,
            grace_s=grace_s,
            table=self.table,
            traffic=self._traffic,
            workers=self.workers,
            isolated=self._isolated,
            do=self._do,
        )
        #: Requests that came before the rules of their routes were known.
        self._unrouted: list[LiveRequest] = []
        #: Passes on a piece of a request's body.
        self.body = self._traffic.body
        self.credit = self._traffic.credit
        self.leave = self._interrupts.leave
        self.interrupt = self._interrupts.ask
        self.end_sockets = self._interrupts.end_sockets
        #: Tasks that outlive their requests' answers, and the workers they run in.
        self._lingering: dict[int, int] = {}
        self._causes: dict[int, Cause] = {}
        #: Whether the app's failure is temporary, and not its own fault.
        self.failure_passes = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._carry_out: dict[type[states.Command], Callable[[Any], None]] = {
            states.StartWorker: self._start_worker,
            states.TryLater: self._try_later,
            states.SendRequest: self._send,
            states.TurnAway: self._refuse,
            states.Hopeless: self._give_up,
            states.LoseRequest: self._lose,
            states.Interrupt: self._interrupts.interrupt,
            states.KillWorker: self._interrupts.kill,
        }

    # The service.

    @property
    def state(self) -> AppState:
        """Return whether requests are served."""
        if self.table.is_served:
            return AppState.SERVED
        return AppState.FAILED if self.table.failure else AppState.LOADING

    @property
    def failure(self) -> str:
        """Return why the app cannot be loaded; or an empty text."""
        return "" if self.table.is_served else self.table.failure

    @property
    def busy(self) -> int:
        """Return the number of requests and tasks that have not ended."""
        return len(self._traffic) + len(self._lingering) + self._isolated.busy

    def request(self, request: AppRequest, sink: AppSink) -> int:
        """Accept a request, and return its number."""
        live = self._traffic.add(request, sink)
        number = live.number
        if self.table.closing:
            self._traffic.end(live, endings.refused("the server is stopping"))
            return number
        if self.app.isolates and not self._routing.is_known:
            self._hold(live)
        else:
            self._place(live)
        return number

    def _hold(self, live: LiveRequest) -> None:
        if self.table.failure:
            self._traffic.end(live, endings.not_loaded(self.table.failure))
        elif len(self._unrouted) >= self.app.queue_limit:
            self._traffic.end(live, endings.too_many(self.app.queue_limit))
        else:
            self._unrouted.append(live)
            self._traffic.clock.set(live, self.app.queue_timeout_s)

    def _place(self, live: LiveRequest) -> None:
        if self._routing.apply(live):
            self._isolated.take(live)
            return
        self._do(self.table.requested(live.number, socket=live.socket))
        if live.worker is None and self._traffic.get(live.number) is live:
            self._traffic.clock.set(live, self.app.queue_timeout_s)

    def _late(self, live: LiveRequest) -> None:
        self._interrupts.late(live)

    def _place_held(self) -> None:
        held, self._unrouted = self._unrouted, []
        for live in held:
            if self._traffic.get(live.number) is live:
                self._place(live)

    def message(self, number: int, piece: bytes, *, more: bool, text: bool) -> None:
        """Pass on a piece of a WebSocket's message."""
        live = self._traffic.get(number)
        if live is not None and live.sink is not None:
            self._traffic.sockets.message(live, piece, more=more, text=text)

    # Life.

    async def settled(self) -> AppState:
        """Wait until all workers have loaded the app, or a load failed; return the state."""
        table = self.table
        await self._waiters.until(lambda: bool(table.failure) or table.is_complete or table.closing)
        return self.state if self.table.is_complete else AppState.FAILED

    def retire(self, within_s: float, then: Callable[[], None]) -> None:
        """Let the app finish its requests, then close it; ``then`` is called at the end."""
        self._retirement.begin(within_s, then)
        self._look_around()

    def note(self, text: str) -> None:
        """Set a remark for the app's statistics; an empty text removes it."""
        self._note = text or None

    @property
    def is_over(self) -> bool:
        """Return whether no process and no request of the app is left."""
        return self.table.closing and not self.busy and not len(self.workers)

    def _look_around(self) -> None:
        """Notify everybody who may wait for what has changed."""
        self._waiters.look()
        self._retirement.look(busy=bool(self.busy), workers=bool(len(self.workers)))
        self._changed()

    def start(self) -> None:
        """Start the app's workers."""
        self._do(self.table.start())

    def close(self) -> None:
        """Take no more requests, and let the workers shut down."""
        if self.table.closing:
            return
        self.table.closing = True
        self._waiters.look()
        for live in self._traffic:
            if live.worker is None:
                self.table.withdrawn(live.number)
                self._traffic.end(live, endings.refused("the server is stopping"))
        self.workers.abandon_loads()
        self._isolated.close()
        for number in list(self.table.workers):
            self.workers.close(number)

    def finish(self) -> None:
        """End the requests that are left: the pool stops now."""
        self._cut("the server stopped before it was answered")
        self._traffic.clock.close()
        self._retirement.abandon()
        for task in self._tasks:
            task.cancel()

    def _cut(self, why: str) -> None:
        for live in self._traffic:
            self._traffic.end(live, endings.refused(why))

    def stats(self) -> AppStats:
        """Return the app's current statistics."""
        return snapshot.of_app(
            self,
            self.workers,
            self._isolated.stats(),
            retiring=self._retirement.begun,
            note=self._note,
        )

    # Commands of the table.

    def _do(self, commands: Iterable[states.Command]) -> None:
        for command in commands:
            self._carry_out[type(command)](command)

    def _start_worker(self, command: states.StartWorker) -> None:
        self._begin_start(command.worker)

    def _begin_start(self, worker: int, *, once: bool = False) -> None:
        task = asyncio.ensure_future(self._find_and_start(worker, once=once))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _find_and_start(self, number: int, *, once: bool) -> None:
        try:
            environment = await self._find(self.app)
        except FlashpoolError as error:
            message = f"its environment cannot be built: {error.message}"
            _log.error("%s: %s", self.app.name, message)
            cause = Cause(error_type=type(error).__name__, message=message, details=error.details)
            self._news.worker_died(number, cause, ours=False)
            return
        if not self.table.closing:
            self.workers.start(number, environment, once=once)

    def _try_later(self, command: states.TryLater) -> None:
        self._loop.call_later(command.seconds, self._retry)

    def _retry(self) -> None:
        if self.app.on_retry is not None and not self.table.closing:
            self.app.on_retry()
        self._do(self.table.retry())

    def _send(self, command: states.SendRequest) -> None:
        live = self._traffic[command.request]
        if not live.routed:  # the request came before the routes were known
            self._routing.apply(live)
        self._traffic.hand_over(live, command.worker, command.slot)

    def _refuse(self, command: states.TurnAway) -> None:
        end = endings.too_many(self.app.queue_limit)
        self._traffic.end(self._traffic[command.request], end)

    def _give_up(self, command: states.Hopeless) -> None:
        end = endings.not_loaded(self.table.failure)
        self._traffic.end(self._traffic[command.request], end)

    def _lose(self, command: states.LoseRequest) -> None:
        live = self._traffic.get(command.request)
        if live is None:
            return  # the pool stops, and has ended the request
        assert live.worker is not None
        self._traffic.end(live, endings.lost(command, self._causes[live.worker]))

    # Events of workers (`workers.AppNews`).

    def worker_loaded(self, worker: int, routes: Routes, load_s: float) -> None:
        """A worker is loaded and takes requests."""
        self._routing.loaded(routes)
        self._do(self.table.loaded(worker))
        self._place_held()
        self._look_around()

    def worker_sent(self, worker: int, frame: wire.Frame) -> None:
        """Handle a frame of one of a worker's requests.

        Raises:
            BadFrame: an app worker sends no such frame.
        """
        if self._traffic.take(worker, frame):
            return
        if frame.kind == wire.LINGERS:
            number, _ = wire.split_number(frame.meta)
            if number in self._lingering or len(self._lingering) > _LINGERING:
                raise wire.BadFrame("a request that reports LINGERS twice, or too many that do")
            self._lingering[number] = worker
            self.table.lingers(worker)
        elif frame.kind == wire.REQUEST_OVER:
            number, how = app_messages.unpack_flags(frame.meta)
            self._on_over(worker, number, how)
        else:
            raise wire.BadFrame(f"an unexpected frame of kind {frame.kind} from an app")

    def _on_over(self, worker: int, number: int, how: int) -> None:
        if self._lingering.pop(number, None) is not None:
            self._do(self.table.no_longer(worker))
            self._look_around()
            return
        live, end = self._traffic.of(worker, number), endings.of_task(how)
        if live is not None and end is not None:
            self._traffic.end(live, end)
            self._do(self.table.answered(number))

    def worker_died(self, worker: int, cause: Cause, *, ours: bool) -> None:
        """A worker died, or was not available."""
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
        if self.table.failure:
            self._place_held()
        self._look_around()

    def worker_gone(self, worker: int) -> None:
        """The process tree of a worker is gone."""
        self._look_around()


def _is_lost(commands: list[states.Command], number: int) -> bool:
    return any(isinstance(one, states.LoseRequest) and one.request == number for one in commands)
