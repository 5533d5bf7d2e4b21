"""Runs requests in processes of their own: forked, loaded, used once, closed.

That process loads the app's module, and no zygote does: threads that the module starts and devices
that it opens belong to the process. Modules that the app imports from elsewhere are preloaded in
the zygote if forks may inherit them. This saves most of the start-up; if not, `slow_because` says
why.

    take --start--> loading --loaded--> running --answered, task over--> closing --> gone
      |                |                   |
      '-- no room      '-- dies: 503       '-- dies: 502; too long: cancelled, then killed

Each process holds a slot, and its GPUs, until it has exited. So at most as many run as the pool has
slots, and others wait like loads. A process has a single request, so its death affects no other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Final

from flashpool.pool._child import app_messages, wire
from flashpool.pool.apps import App
from flashpool.pool.exit_causes import Cause, Stop
from flashpool.pool.stats import IsolatedStats
from flashpool.pool.workers.zygote import ZygoteProcess

from . import endings, states
from .requests import LiveRequest
from .traffic import AppTraffic
from .workers import AppWorkers

_log = logging.getLogger(__name__)

#: Seconds of loading above which the cost is reported, as each request pays it.
_SLOW_S: Final = 0.1
#: Begins the reason why a module that does not exist is not preloaded.
_NOT_THERE: Final = "ModuleNotFoundError"

#: Most modules that a reason names.
_NAMED: Final = 3


def slow_because(zygote: ZygoteProcess) -> str:
    """Return why loading the app in a process of this zygote takes long."""
    if zygote.method != "fork":
        return "its processes are not forked, but started one by one"
    if not zygote.has_preloaded:
        return "its zygote does not have what the app imports, or not yet"
    barred = {name: why for name, why in zygote.skipped.items() if not why.startswith(_NOT_THERE)}
    if barred:
        named = "; ".join(f"{name}: {why}" for name, why in list(barred.items())[:_NAMED])
        return f"some of what it imports cannot be inherited by a fork ({named})"
    return "that is what its own modules and its start-up take"


class IsolatedRequests:
    """The isolated requests of one app."""

    def __init__(
        self,
        app: App,
        *,
        grace_s: float,
        numbers: Iterator[int],
        traffic: AppTraffic,
        workers: AppWorkers,
        start: Callable[[int], None],
    ) -> None:
        """``start`` starts a worker with a number, once its environment is ready."""
        self.app = app
        self._grace_s = grace_s
        self._numbers = numbers
        self._traffic = traffic
        self._workers = workers
        self._start = start
        self._loop = asyncio.get_running_loop()
        #: The request of each worker, by worker number.
        self._loading: dict[int, int] = {}
        self._running: dict[int, int] = {}
        #: Workers that are shutting down.
        self._closing: set[int] = set()
        self._served = 0
        #: Seconds that the latest load took, and why, if that was long; reasons logged so far.
        self._load_s: float | None = None
        self._slow_because = ""
        self._said: set[str] = set()

    def __contains__(self, worker: int) -> bool:
        return worker in self._loading or worker in self._running or worker in self._closing

    @property
    def busy(self) -> int:
        """Return the number of workers whose request is not over."""
        return len(self._loading) + len(self._running)

    def stats(self) -> IsolatedStats:
        """Return the current statistics."""
        return IsolatedStats(
            waiting=len(self._loading),
            running=len(self._running),
            served=self._served,
            load_s=self._load_s,
            slow_because=self._slow_because or None,
        )

    # Requests.

    def take(self, live: LiveRequest) -> None:
        """Accept a request that gets a process of its own."""
        live.isolated = True
        if len(self._loading) >= self.app.queue_limit:
            self._traffic.end(live, endings.too_many(self.app.queue_limit))
            return
        worker = next(self._numbers)
        self._loading[worker] = live.number
        self._traffic.clock.set(live, self.app.queue_timeout_s)
        self._start(worker)

    def leave(self, live: LiveRequest, code: int, reason: str) -> None:
        """Handle the disconnect of a request's client."""
        if live.worker is None:
            self._traffic.forget(live)  # the worker is closed once it has loaded
            return
        if live.socket:
            self._traffic.sockets.close(live, code, reason)
        else:
            self._workers.send(live.worker, wire.DISCONNECT, wire.NUMBER.pack(live.number))
        self._loop.call_later(self._grace_s, self._cancel, live.worker, live.number, "left")

    def late(self, live: LiveRequest) -> None:
        """Cancel a request that exceeded its limit; its client has been told."""
        if live.worker is None:
            self._traffic.forget(live)
        else:
            self._cancel(live.worker, live.number, "ran longer than its limit")

    def _cancel(self, worker: int, number: int, why: str) -> None:
        if self._running.get(worker) == number:
            self._workers.send(worker, wire.CANCEL, wire.NUMBER.pack(number))
            self._loop.call_later(self._grace_s, self._kill, worker, number, why)

    def _kill(self, worker: int, number: int, why: str) -> None:
        if self._running.get(worker) == number:
            message = f"its request {why}, and did not end when its task was cancelled"
            stop = Stop(error_type="Timeout", message=message, details={})
            self._workers.kill(worker, stop)

    def close(self) -> None:
        """Take no more requests: stop loading workers, and let running workers shut down."""
        for worker in [*self._loading, *self._running]:
            if self._loading.pop(worker, None) is not None:
                self._closing.add(worker)
            self._workers.close(worker)

    # Events of workers.

    def worker_loaded(self, worker: int, load_s: float) -> None:
        """A worker is loaded and takes its request."""
        self._note_load(worker, load_s)
        live = self._traffic.get(self._loading.pop(worker))
        if live is None:
            self._close(worker)
            return
        self._running[worker] = live.number
        self._served += 1
        self._traffic.hand_over(live, worker, 0)

    def _note_load(self, worker: int, load_s: float) -> None:
        self._load_s, self._slow_because = load_s, ""
        if load_s > _SLOW_S:
            why = self._slow_because = slow_because(self._workers[worker].worker.zygote)
            if why not in self._said:
                self._said.add(why)
                text = "%s: a request of an isolated route paid the %.0f ms that loading took: %s"
                _log.warning(text, self.app.name, load_s * 1000, why)

    def worker_sent(self, worker: int, frame: wire.Frame) -> None:
        """Handle a frame of a worker's request.

        Raises:
            BadFrame: an app worker sends no such frame.
        """
        if self._traffic.take(worker, frame) or frame.kind == wire.LINGERS:
            return
        if frame.kind != wire.REQUEST_OVER:
            raise wire.BadFrame(f"an unexpected frame of kind {frame.kind} from an app")
        number, how = app_messages.unpack_flags(frame.meta)
        live, end = self._traffic.of(worker, number), endings.of_task(how)
        if live is not None and end is not None:
            self._traffic.end(live, end)
        if self._running.pop(worker, None) is not None:
            self._close(worker)

    def _close(self, worker: int) -> None:
        self._closing.add(worker)
        self._workers.close(worker)

    def worker_died(self, worker: int, cause: Cause) -> None:
        """A worker died, or was not available."""
        loading = self._loading.pop(worker, None)
        if loading is not None and (live := self._traffic.get(loading)) is not None:
            self._traffic.end(live, endings.not_loaded(cause.message))
        number = self._running.pop(worker, None)
        if number is not None and (live := self._traffic.get(number)) is not None:
            began = self._workers[worker].has_begun(live.slot, number)
            lost = states.LoseRequest(number, began, sibling=False)
            self._traffic.end(live, endings.lost(lost, cause))
        self._closing.discard(worker)
