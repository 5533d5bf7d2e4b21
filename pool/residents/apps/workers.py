"""The processes of one app: requests them from the scheduler, loads them, and handles their deaths.

    start --> Scheduler --Dispatch--> LOAD_APP --> LOADED --> frames of its requests
                          (ledger)       |            |
                                         '------------'--> died --> gone

Each worker of an app has a number, which the table uses. A worker holds a slot while it loads the
app, and its GPUs as long as it lives.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from flashpool.pool import call_ids, exit_causes
from flashpool.pool._child import wire
from flashpool.pool.apps import App
from flashpool.pool.calls import Call, Codec, Provision
from flashpool.pool.config import PoolConfig
from flashpool.pool.errors import FlashpoolError
from flashpool.pool.exit_causes import Cause, Stop
from flashpool.pool.gpus.access import GpuAccess
from flashpool.pool.residents.events import Host
from flashpool.pool.scheduling.preloading import PreloadLearner
from flashpool.pool.scheduling.scheduler import Scheduler
from flashpool.pool.workers.call_table import CallTable
from flashpool.pool.workers.ends import outcomes
from flashpool.pool.workers.ends.memory import MemoryLimit
from flashpool.pool.workers.output_buffer import OutputBuffer
from flashpool.pool.workers.poller import Clock
from flashpool.pool.workers.states import WorkerState
from flashpool.pool.workers.worker import Worker
from flashpool.pool.workers.worker_set import WorkerSet

from . import failures
from .process import AppProcess
from .routing import Routes, routes_told

_log = logging.getLogger(__name__)

#: A load that takes less, in a zygote with preloaded modules, is not worth another zygote.
_WORTH_LEARNING_S: Final = 1.0
#: Most characters of a failed load's error in the log.
_TOLD: Final = 16 * 1024
_PRINTED: Final = (wire.OUTPUT, wire.ERRORS)


class AppNews(Protocol):
    """Receives events of the workers: `runner.AppRunner`."""

    def worker_loaded(self, worker: int, routes: Routes, load_s: float) -> None:
        """A worker has loaded the app, in ``load_s`` seconds, and takes requests."""

    def worker_sent(self, worker: int, frame: wire.Frame) -> None:
        """A worker sent a frame of one of its requests."""

    def worker_died(self, worker: int, cause: Cause, *, ours: bool) -> None:
        """A worker died, or was not available; ``ours``: the app is not at fault."""

    def worker_gone(self, worker: int) -> None:
        """The process tree of a worker is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppSurroundings:
    """Parts of the pool that workers of apps use."""

    config: PoolConfig
    scheduler: Scheduler
    worker_set: WorkerSet
    calls: CallTable
    gpus: GpuAccess
    learner: PreloadLearner
    now: Clock
    host: Host
    #: By the number of a load: the function to call with its worker, or with the reason for none.
    loads: dict[int, Callable[[Worker | None, tuple[str, ...], str], None]] = field(
        default_factory=dict
    )


class AppWorkers:
    """All processes of one app."""

    def __init__(self, app: App, pool: AppSurroundings, to: AppNews) -> None:
        self._app = app
        self._pool = pool
        self._to = to
        self._loop = asyncio.get_running_loop()
        self._by_number: dict[int, AppProcess] = {}
        self._by_worker: dict[int, AppProcess] = {}
        self._own_loads: set[int] = set()
        self._last_told = ""

    def __len__(self) -> int:
        """Return the number of loads without a process, and of process trees that are not gone."""
        return len(self._by_worker) + len(self._own_loads)

    def __getitem__(self, number: int) -> AppProcess:
        return self._by_number[number]

    def get(self, number: int) -> AppProcess | None:
        """Return a worker's process, once it has one."""
        return self._by_number.get(number)

    # Births.

    def start(self, number: int, environment: str, *, once: bool = False) -> None:
        """Start a worker in this environment; ``once``: for a single request."""
        try:
            gpus = self._pool.gpus.number(self._app.gpus)
        except FlashpoolError as error:
            self._not_started(number, error.message)
            return
        load_id = self._pool.calls.new_id()
        self._own_loads.add(load_id)

        def found(worker: Worker | None, uuids: tuple[str, ...], reason: str) -> None:
            self._own_loads.discard(load_id)
            if worker is None:
                self._not_started(number, reason)
                return
            try:
                self._load(number, worker, uuids, once=once)
            except OSError as error:  # descriptors or memory for the ledger are short
                self._pool.worker_set.dismiss(worker)
                self._not_started(number, str(error))

        self._pool.loads[load_id] = found
        key = self._pool.learner.route(self._as_call(environment))
        self._pool.host.do(
            self._pool.scheduler.submitted(load_id, key, self._pool.now(), gpus=gpus, beside=None)
        )

    def _as_call(self, environment: str) -> Call:
        """Return the load in the form of a call, which the learner of preloads expects."""
        app = self._app
        return Call(
            codec=Codec.FLASH,
            body=b"",
            label=app.name,
            function_key=("app", app.directory, app.file, app.module),
            provision=Provision(environment=environment),
        )

    def _learn(self, worker: Worker, meta: wire.ResultMeta) -> None:
        """Have the modules that a worker imported preloaded, so that its successor loads faster."""
        if worker.zygote.method == "fork" and (modules := meta.texts("modules")):
            if worker.zygote.has_preloaded and meta.run_s < _WORTH_LEARNING_S:
                return
            modules = [*modules, *self._app.preload]
            call = self._as_call(worker.zygote.key.environment)
            key = worker.zygote.key
            observed = self._pool.learner.observed
            self._pool.host.want(observed(key, call.function_key, modules, call.touches))

    def _not_started(self, number: int, reason: str) -> None:
        message = f"no worker can be started for the app: {reason}"
        _log.error("%s: %s", self._app.name, message)
        details = {failures.NO_WORKER: True}
        cause = Cause(error_type="EnvironmentStartFailed", message=message, details=details)
        # From the loop: the caller, which is asking for a worker, must return first.
        self._loop.call_soon(lambda: self._to.worker_died(number, cause, ours=False))

    def _load(self, number: int, worker: Worker, gpus: tuple[str, ...], *, once: bool) -> None:
        app = self._app
        slots = 1 if once else app.concurrency + app.websockets
        process = AppProcess(number, worker, slots, app.name, once=once)
        self._by_number[number] = self._by_worker[worker.id] = process
        worker.state.move(WorkerState.BUSY)
        worker.instance = f"app {app.name}"
        worker.app = self
        worker.aside = OutputBuffer(worker.link.output_limit)
        worker.loading, worker.fed_at = True, self._pool.now()
        env = self._pool.gpus.variables(gpus, app.env)
        meta = wire.pack_call_meta(pickled=False, stream=False, result_limit=None, env=env)
        kind = wire.LOAD_JOBS if app.jobs else wire.LOAD_APP
        what = self._what(once=once)
        self._pool.worker_set.send(worker, kind, meta, what, (process.ledger_fd,))
        os.close(process.ledger_fd)
        self._loop.call_later(app.start_timeout_s, self._load_too_long, process)
        self._limit_memory(process)

    def _what(self, *, once: bool) -> bytes:
        app = self._app
        what = {
            "directory": app.directory,
            "file": app.file,
            "module": app.module,
            "attribute": app.attribute,
            "generated": app.generated,
            "threads": app.threads,
            "once": once,
            "ids": (call_ids.prefix, call_ids.GIVEN.pattern),
            "functions": app.functions,
        }
        return json.dumps(what).encode()

    def _load_too_long(self, process: AppProcess) -> None:
        if not process.dead and process.loaded_at is None:
            limit = self._app.start_timeout_s
            message = (
                f"the app was not loaded within {limit:g} s (FLASHPOOL_APP_START_TIMEOUT_S), "
                "and its worker was ended"
            )
            stop = Stop(error_type="Timeout", message=message, details={})
            self._pool.worker_set.stop(process.worker, stop, grace=0.0, dump=True)

    def _limit_memory(self, process: AppProcess) -> None:
        limit_mb, worker = self._app.memory_mb, process.worker
        if limit_mb is None:
            return

        def applies() -> bool:
            return not process.dead and not worker.stopping

        def exceeded(used_bytes: int) -> None:
            stop = outcomes.used_too_much(limit_mb, used_bytes)
            message = (
                f"the app's worker was stopped because it used too much memory: {stop.details['evidence']} "
                "(FLASHPOOL_MEMORY_MB)"
            )
            stop = Stop(error_type=stop.error_type, message=message, details=stop.details)
            self._pool.worker_set.stop(worker, stop, grace=0.0)

        limit = MemoryLimit(pid=worker.pid, limit_mb=limit_mb, applies=applies, exceeded=exceeded)
        self._pool.calls.memory_watch.add(limit)

    # Commands.

    def send(self, number: int, kind: int, meta: bytes, body: bytes = b"") -> None:
        """Send a frame to a worker."""
        self._pool.worker_set.send(self._by_number[number].worker, kind, meta, body)

    def kill(self, number: int, stop: Stop) -> None:
        """Kill a worker at once, with all processes that it started."""
        self._pool.worker_set.stop(self._by_number[number].worker, stop, grace=0.0, dump=False)

    def close(self, number: int) -> None:
        """Let a worker shut down; `Watchdog.check` makes sure that it exits."""
        process = self._by_number.get(number)
        if process is None or process.worker.state.now is not WorkerState.BUSY:
            return
        worker = process.worker
        process.closing = True
        if process.loaded_at is None:
            self._pool.worker_set.stop(worker, None, grace=self._pool.config.grace_s)
            return
        worker.state.move(WorkerState.EXITING)
        worker.exiting_since = self._pool.now()
        self._pool.worker_set.send(worker, wire.CLOSE, b"")

    def abandon_loads(self) -> None:
        """Withdraw loads that have no process yet."""
        for load_id in self._own_loads:
            self._pool.loads.pop(load_id, None)
            self._pool.scheduler.withdrawn(load_id)
        self._own_loads.clear()

    # Events (`workers.worker.AppKeeper`).

    def sent(self, worker: Worker, frame: wire.Frame) -> None:
        """Handle a frame of a worker.

        Raises:
            BadFrame: an app worker sends no such frame.
        """
        process = self._by_worker[worker.id]
        if process.dead:
            return
        if frame.kind != wire.LOADED:
            if frame.kind in _PRINTED and not self._app.jobs:
                process.output.take_of(_request_id(frame), frame.body)
                return
            self._to.worker_sent(process.number, frame)
            return
        meta = wire.ResultMeta.unpack(frame.meta)
        worker.loading = False
        if meta.ok:
            routes = routes_told(meta)
            process.loaded_at = time.time()
            level = logging.DEBUG if process.once else logging.INFO
            text = "%s: loaded in %.2f s, process %d"
            _log.log(level, text, self._app.name, meta.run_s, worker.pid)
            if not process.once:
                release = self._pool.scheduler.release_slot
                self._pool.host.do(release(worker.id, self._pool.now()))
            self._learn(worker, meta)
            self._to.worker_loaded(process.number, routes, meta.run_s)
            return
        if worker.state.now is WorkerState.BUSY:
            worker.state.move(WorkerState.EXITING)
        worker.exiting_since = self._pool.now()
        reason = self._not_loaded(str(meta.more["error"])[-_TOLD:])
        cause = Cause(error_type=str(meta.more["error_type"]), message=reason, details={})
        self.died(worker, cause, told=True)

    def _not_loaded(self, told: str, last_words: str = "") -> str:
        """Log why the app cannot be loaded, unless it is the latest reason logged.

        Returns the first line.
        """
        if self._app.hint:
            told = f"{self._app.hint}\n{told}"
        if told != self._last_told:
            self._last_told = told
            _log.error("%s cannot be loaded: %s%s", self._app.name, told, last_words)
        return told.partition("\n")[0]

    def printed(self, worker: Worker, chunk: bytes) -> None:
        """Handle output of a worker."""
        worker.link.output = None  # the output is logged, and not kept
        self._by_worker[worker.id].output.take(chunk)

    def died(self, worker: Worker, cause: Cause, *, told: bool = False) -> None:
        """Handle a worker that is dead, or whose channel is unusable.

        ``told``: the cause is in the log already.
        """
        process = self._by_worker[worker.id]
        if process.dead:
            return
        process.dead = True
        process.output.close()
        number = process.number
        last_words = f"\nThe last it printed:\n{tail}" if (tail := process.output.tail()) else ""
        if process.loaded_at is not None and not process.closing:
            _log.error(
                "%s: worker %d died, and its state is lost: %s%s",
                self._app.name,
                worker.pid,
                cause.message,
                last_words,
            )
        elif not (told or process.closing or "zygote" in cause.details):
            reason = self._not_loaded(cause.message, last_words)
            cause = Cause(error_type=cause.error_type, message=reason, details=cause.details)
        ours = "zygote" in cause.details
        self._to.worker_died(number, cause, ours=ours)
        del self._by_number[number]

    def gone(self, worker: Worker) -> None:
        """Handle a worker whose process tree is gone."""
        process = self._by_worker.pop(worker.id)
        if not process.dead:
            # No other report of the worker's death came.
            self._by_worker[worker.id] = process
            self.died(worker, exit_causes.of_app(worker.status, worker.stop, None))
            del self._by_worker[worker.id]
        process.ledger.close()
        self._to.worker_gone(process.number)
        self._pool.host.changed()


def _request_id(frame: wire.Frame) -> str:
    """Return the id of the request that printed a line.

    Raises:
        BadFrame: the frame has no valid request id.
    """
    _, name = wire.split_number(frame.meta)
    if not call_ids.GIVEN_BYTES.fullmatch(name):
        raise wire.BadFrame("output of a request without an id")
    return name.decode()
