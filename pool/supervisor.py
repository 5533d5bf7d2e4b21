"""The supervisor: sole owner of the pool's state. It starts, watches and stops.

    sinks  <-- outcomes --  Supervisor  -- events -->   Scheduler
                             |      ^   <-- commands --
          control, channels  v      |  frames, output, deaths
                            zygotes and workers

One thread, on an asyncio loop it shares with the front-end. All descriptors of zygotes
and workers are in one epoll of its own, and that epoll in the loop: a worker costs one
``epoll_ctl``, not a loop's transport. It never runs, unpickles or even reads what a user
sent; bytes go from the front-end to a worker and back.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import select
from collections.abc import Callable
from functools import partial
from typing import Final

from . import causes, ends, scheduler
from ._child import wire
from .calls import Call, Outcome, Sink
from .channel import WorkerLink
from .config import PoolConfig
from .errors import EnvironmentStartFailed, Overloaded, PoolClosed
from .learning import Learner
from .memory import OomWatch, exact, used
from .scheduler import (
    Command,
    DismissWorker,
    Dispatch,
    Fail,
    ForkWorkers,
    RetireZygote,
    Scheduler,
    StartZygote,
    ZygoteKey,
)
from .states import WorkerState, ZygoteState
from .stats import CallStats, PoolStats, QueueStats, Recorder, SlotStats, ZygoteStats
from .workers import Running, Worker
from .zygote import ZygoteProcess

log = logging.getLogger(__name__)

#: Events taken from the epoll in one go, before the loop serves others.
_TURN: Final = 128
#: Between looks at the memory of calls that have a limit.
_MEMORY_LOOK_S: Final = 0.05
#: A zygote that leaves a request unanswered this long is taken for stopped, and killed.
_ANSWER_S: Final = 10.0
#: After a fork failed.
_FORK_AGAIN_S: Final = 0.5
#: Beyond a stop's grace, the time its zygote has to carry it out.
_STOP_MARGIN_S: Final = 5.0
#: Largest frame a worker may send; large buffers travel in descriptors.
_RESULT_LIMIT: Final = 4 << 30


class Supervisor:
    """Runs calls in forked workers. All methods belong to the loop's thread."""

    def __init__(self, config: PoolConfig) -> None:
        self.config = config
        self.draining = False
        self._scheduler = Scheduler(
            scheduler.Policy(
                slots=config.slots,
                queue_limit=config.queue_limit,
                max_spares=config.max_spares,
                spare_idle_s=config.spare_idle_s,
            )
        )
        self._learner = Learner(config.preload_learn)
        self._recorder = Recorder()
        self._oom = OomWatch()
        self._base = ZygoteKey("base")
        self._zygotes: dict[ZygoteKey, ZygoteProcess] = {}
        self._leaving: list[ZygoteProcess] = []
        self._starts: dict[ZygoteKey, int] = {}
        self._failures: dict[ZygoteKey, str] = {}
        #: Environments whose workers are spawned, and why.
        self._spawned: dict[str, str] = {}
        self._workers: dict[tuple[int, int], Worker] = {}
        self._by_id: dict[int, Worker] = {}
        self._calls: dict[int, Running] = {}
        self._limited: set[int] = set()
        self._ids = itertools.count(1)
        self._worker_ids = itertools.count(1)
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._timers: list[asyncio.TimerHandle] = []
        self._changed: asyncio.Event | None = None
        self._closed = False

    # Life.

    async def start(self) -> None:
        """Begin; the base zygote starts in the background."""
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._changed = asyncio.Event()
        self._epoll = select.epoll()
        self._loop.add_reader(self._epoll.fileno(), self._pump)
        self._every(scheduler.TICK_S, self._tick)
        self._every(_MEMORY_LOOK_S, self._look_at_memory)
        self._do(self._scheduler.wanted(self._base, self._now()))

    @property
    def ready(self) -> bool:
        """Whether a call would find its zygote up."""
        return self._scheduler.is_up(self._base) and not self.draining

    async def wait_ready(self) -> None:
        """Until the base zygote is up.

        Raises:
            EnvironmentStartFailed: it did not come up.
        """
        while not self._scheduler.is_up(self._base):
            failure = self._failures.get(self._base)
            if failure is not None and self._base not in self._zygotes:
                raise EnvironmentStartFailed(
                    f"the base interpreter {self.config.base_python} did not start: {failure}"
                )
            if self._closed:
                raise PoolClosed("the pool is shut down")
            await self._change()

    async def drain(self, limit_s: float) -> bool:
        """Refuse new calls; True when all that were accepted have ended in time."""
        self.draining = True
        deadline = self._now() + limit_s
        while self._calls and self._now() < deadline:
            try:
                await asyncio.wait_for(self._change(), deadline - self._now())
            except asyncio.TimeoutError:
                break
        return not self._calls

    async def stop(self) -> None:
        """End every call as cancelled and every process; returns when all is gone."""
        if self._closed:
            return
        self.draining = self._closed = True
        for call_id in list(self._calls):
            self._finish(call_id, ends.cancelled("the pool is shut down"))
        for zygote in list(self._zygotes.values()):
            self._retire(zygote)
        deadline = self._now() + _STOP_MARGIN_S
        while self._leaving:
            if self._now() > deadline:
                for zygote in self._leaving:
                    zygote.kill_with_guard()
            try:
                await asyncio.wait_for(self._change(), 0.5)
            except asyncio.TimeoutError:
                continue
        for timer in self._timers:
            timer.cancel()
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    # Calls.

    def submit(self, call: Call, sink: Sink) -> int:
        """Take a call; its sink hears of it from now on. Returns its id.

        Raises:
            Overloaded: the queue is full, or the pool drains.
            PoolClosed: the pool is shut down.
        """
        if self._closed:
            raise PoolClosed("the pool is shut down")
        if self.draining:
            raise Overloaded(
                "the server is draining and takes no more calls; send it to another worker",
                retry_after_s=1,
            )
        call_id = next(self._ids)
        now = self._now()
        key = self._learner.route(call.environment, call.function_key)
        running = Running(call, sink, key, now)
        # Known before the scheduler is asked: it may dispatch at once.
        self._calls[call_id] = running
        try:
            commands = self._scheduler.submitted(call_id, key, now)
        except scheduler.QueueFull:
            del self._calls[call_id]
            self._recorder.refused += 1
            raise Overloaded(
                f"the queue is full: {self.config.queue_limit} calls wait already; send it again later, "
                "or raise FLASHPOOL_QUEUE_LIMIT",
                retry_after_s=1,
            ) from None
        self._do(commands)
        limit = call.limits.queue_s
        if limit is not None and running.worker is None and call_id in self._calls:
            running.timer = self._loop.call_later(limit, self._queued_too_long, call_id)
        return call_id

    def cancel(self, call_id: int, reason: str = "cancelled") -> None:
        """End a call; its sink hears of it at once, its process tree goes meanwhile."""
        if call_id in self._calls:
            self._stop_call(call_id, None)
            self._finish(call_id, ends.cancelled(reason))

    def credit(self, call_id: int, items: int) -> None:
        """The sink took that many items of a stream: the worker may send as many more."""
        running = self._calls.get(call_id)
        if running is not None and running.worker is not None:
            self._send(running.worker, wire.CREDIT, {"items": items})

    def stats(self) -> PoolStats:
        """The pool as it is now."""
        now = self._now()
        oldest = self._scheduler.waiting_since()
        return PoolStats(
            ready=self.ready,
            draining=self.draining,
            slots=SlotStats(total=self.config.slots, busy=self._scheduler.busy),
            queue=QueueStats(
                depth=self._scheduler.waiting,
                limit=self.config.queue_limit,
                oldest_age_s=None if oldest is None else round(now - oldest, 3),
                refused=self._recorder.refused,
            ),
            zygotes=[self._zygote_stats(one) for one in (*self._zygotes.values(), *self._leaving)],
            running=[
                CallStats(
                    id=call_id,
                    label=one.call.label,
                    age_s=round(now - one.submitted_at, 3),
                    phase=one.phase.value,
                    pid=one.worker.pid if one.worker else None,
                    environment=one.call.environment,
                )
                for call_id, one in itertools.islice(self._calls.items(), 1000)
            ],
            calls=self._recorder.calls,
            outcomes=dict(self._recorder.outcomes),
            latency=self._recorder.latency(),
            recent_failures=self._recorder.failures(),
            supervisor=self._recorder.supervisor(),
        )

    def _zygote_stats(self, zygote: ZygoteProcess) -> ZygoteStats:
        key = zygote.key
        workers = sum(1 for worker in self._workers.values() if worker.zygote is zygote)
        return ZygoteStats(
            environment=key.environment,
            profile=key.profile,
            pid=zygote.pid,
            state=zygote.state.now.value,
            python=zygote.version,
            start_method=zygote.method,
            reason=self._spawned.get(key.environment),
            start_s=None
            if zygote.ready_at is None
            else round(zygote.ready_at - zygote.started_at, 4),
            preloaded=len(zygote.preload) - len(zygote.skipped),
            preload=list(zygote.preload[:100]),
            skipped={**zygote.skipped, **self._learner.denied(key.environment)},
            spares=self._scheduler.spares(key),
            workers=workers,
            starts=self._starts.get(key, 0),
            last_failure=self._failures.get(key),
        )

    # Commands of the scheduler.

    def _do(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Dispatch):
                self._dispatch(command.call, self._by_id[command.worker])
            elif isinstance(command, ForkWorkers):
                self._fork(command.key, command.number)
            elif isinstance(command, DismissWorker):
                self._dismiss(self._by_id[command.worker])
            elif isinstance(command, StartZygote):
                self._start_zygote(command.key)
            elif isinstance(command, RetireZygote):
                self._retire(self._zygotes[command.key])
            elif isinstance(command, Fail):
                self._finish(
                    command.call, ends.start_failed(command.key.environment, command.reason)
                )

    def _dispatch(self, call_id: int, worker: Worker) -> None:
        running = self._calls[call_id]
        worker.take(call_id, running, self._now())
        started = getattr(running.sink, "started", None)
        if started is not None:
            started()
        call = running.call
        meta = {
            "codec": call.codec.value,
            "env": call.env,
            "stream": call.stream,
            "result_limit": call.limits.result_bytes,
        }
        self._send(worker, wire.CALL, meta, call.body, call.fds)
        for fd in call.fds:
            os.close(fd)
        limit = call.limits.run_s
        if running.timer is not None:
            running.timer.cancel()
        running.timer = (
            None if limit is None else self._loop.call_later(limit, self._ran_too_long, call_id)
        )
        if call.limits.memory_mb is not None:
            self._limited.add(call_id)

    def _send(
        self,
        worker: Worker,
        kind: int,
        meta: wire.Meta,
        body: bytes = b"",
        fds: tuple[int, ...] = (),
    ) -> None:
        try:
            worker.link.send(kind, meta, body, fds)
        except OSError:
            return  # It died; EXITED follows, and the call is tried again if it had not begun.
        if worker.link.blocked:
            self._epoll.modify(worker.link.sock, select.EPOLLIN | select.EPOLLOUT)

    def _fork(self, key: ZygoteKey, count: int) -> None:
        zygote = self._zygotes[key]
        if zygote.unanswered == 0:
            zygote.answered_at = self._now()
        zygote.unanswered += count
        zygote.send(wire.FORK, n=count)
        self._watch_unsent(zygote)

    def _dismiss(self, worker: Worker) -> None:
        """End a spare: it leaves when its channel closes."""
        worker.state.move(WorkerState.ENDING)
        worker.ending_since = self._now()
        worker.link.sock.shutdown(2)

    # Zygotes.

    def _start_zygote(self, key: ZygoteKey) -> None:
        preload = (*self.config.preload, *self._learner.modules(key))
        method = "spawn" if key.environment in self._spawned else self.config.start_method
        self._starts[key] = self._starts.get(key, 0) + 1
        self._failures.pop(key, None)
        now = self._now()
        try:
            zygote = ZygoteProcess(
                key, self.config.base_python, self.config, preload=preload, method=method, now=now
            )
        except OSError as error:
            # Told from the loop: the scheduler is in the middle of an event.
            self._loop.call_soon(
                self._zygote_is_lost, key, f"{self.config.base_python}: {error.strerror}"
            )
            return
        self._zygotes[key] = zygote
        self._watch(zygote.control.fileno(), partial(self._on_control, zygote))
        self._watch(zygote.words_fd, partial(self._on_words, zygote))
        self._watch(zygote.guard_fd, partial(self._on_guard_exit, zygote))
        zygote.send(
            wire.START,
            path=list(self.config.extra_path),
            runtime=ends.runtime_packages(),
            preload=list(preload),
            method=method,
            workdir=self.config.workdir,
            log_level=self.config.log_level,
            grace=self.config.grace_s,
        )

    def _retire(self, zygote: ZygoteProcess) -> None:
        if self._zygotes.get(zygote.key) is zygote:
            del self._zygotes[zygote.key]
            self._leaving.append(zygote)
            zygote.leave()
            self._watch_unsent(zygote)

    def _on_control(self, zygote: ZygoteProcess, events: int) -> None:
        if events & select.EPOLLOUT:
            zygote.flush()
            self._watch_unsent(zygote)
        try:
            for message, fds in zygote.receive():
                self._on_message(zygote, message, fds)
        except wire.Closed:
            self._unwatch(zygote.control.fileno())

    def _on_message(self, zygote: ZygoteProcess, message: wire.Meta, fds: list[int]) -> None:
        op = message["op"]
        zygote.answered_at = self._now()
        if op == wire.SPARES:
            self._on_spares(zygote, message, fds)
        elif op == wire.NOT_FORKED:
            self._on_not_forked(zygote, message["n"], message["why"])
        elif op == wire.EXITED:
            self._on_exited(zygote, message)
        elif op == wire.GONE:
            self._on_gone(zygote, message["worker"])
        elif op == wire.READY:
            if zygote.state.now is ZygoteState.STARTING:  # else it was told to leave meanwhile
                self._on_zygote_ready(zygote, message)
        elif op == wire.LOADING:
            zygote.loading = message["module"]
        elif op == wire.SKIPPED:
            zygote.skipped[message["module"]] = message["why"]
            self._learner.skip(zygote.key, message["module"], message["why"])
        elif op == wire.UNSAFE:
            zygote.unsafe = (message["module"], message["why"])

    def _on_zygote_ready(self, zygote: ZygoteProcess, message: wire.Meta) -> None:
        zygote.is_ready(message, self._now())
        log.info("zygote %s is ready in %.3f s", zygote.key, self._now() - zygote.started_at)
        self._do(self._scheduler.zygote_ready(zygote.key, self._now()))
        replaced = self._learner.started(zygote.key)
        if replaced is not None:
            self._do(self._scheduler.retire(replaced, zygote.key, self._now()))
        self._want(self._learner.behind(zygote.key.environment))
        self._tell_change()

    def _want(self, key: ZygoteKey | None) -> None:
        if key is not None and not self._closed:
            self._do(self._scheduler.wanted(key, self._now()))

    def _on_words(self, zygote: ZygoteProcess, events: int) -> None:
        if not zygote.read_words():
            self._unwatch(zygote.words_fd)

    def _on_guard_exit(self, zygote: ZygoteProcess, events: int) -> None:
        """All below the guard is gone, and what it told last is in the sockets."""
        if zygote.process.poll() is None:
            return  # The event was for an earlier holder of this descriptor's number.
        key = zygote.key
        try:
            for message, fds in zygote.receive():
                self._on_message(zygote, message, fds)
        except wire.Closed:
            pass
        zygote.read_words()
        for fd in (zygote.control.fileno(), zygote.words_fd, zygote.guard_fd):
            self._unwatch(fd)
        zygote.close()
        zygote.left = zygote.state.now is ZygoteState.LEAVING
        zygote.state.move(ZygoteState.GONE)
        if self._zygotes.get(key) is zygote:
            del self._zygotes[key]
        if zygote in self._leaving:
            self._leaving.remove(zygote)
        if not zygote.left:
            log.warning("zygote %s is lost: %s", key, zygote.reason())
            self._blame(zygote)
        self._zygote_is_lost(key, zygote.reason(), zygote)

    def _blame(self, zygote: ZygoteProcess) -> None:
        """Do not let happen again what can be avoided: spawn, or leave a module out."""
        if zygote.ready_at is not None:
            return
        culprit = zygote.unsafe[0] if zygote.unsafe else zygote.loading
        if zygote.key.profile:
            self._learner.failed(zygote.key, culprit, zygote.reason())
        elif zygote.unsafe:
            self._spawned[zygote.key.environment] = zygote.reason()

    def _zygote_is_lost(
        self, key: ZygoteKey, reason: str, zygote: ZygoteProcess | None = None
    ) -> None:
        now = self._now()
        # An environment that must not be forked starts again at once, to be spawned.
        curable = zygote is not None and zygote.unsafe is not None and key.profile == 0
        if not curable and (zygote is None or not zygote.left):
            self._failures[key] = reason
        lost = [worker for worker in self._workers.values() if worker.zygote is zygote]
        commands = self._scheduler.zygote_lost(key, reason, now, curable=curable)
        for worker in lost:
            self._lost_with_zygote(worker, reason)
        self._do(commands)
        was_up = zygote is not None and zygote.ready_at is not None
        if key == self._base and (was_up or curable):
            self._want(key)
        self._tell_change()

    def _lost_with_zygote(self, worker: Worker, reason: str) -> None:
        self._drain_link(worker)
        call_id = worker.call_id
        if call_id is not None and worker.running is not None and not worker.running.done:
            cause = causes.of_lost_zygote(reason, worker.link.output.tail(causes.TAIL))
            self._finish(call_id, ends.failed(worker.running, cause, self._now(), None))
        self._forget(worker)
        self._do(self._scheduler.worker_gone(worker.id, self._now()))

    # Workers.

    def _on_spares(self, zygote: ZygoteProcess, message: wire.Meta, fds: list[int]) -> None:
        zygote.unanswered -= len(message["workers"])
        for pid, channel_fd, output_fd in zip(message["workers"], fds[::2], fds[1::2], strict=True):
            link = WorkerLink(
                channel_fd,
                output_fd,
                output_limit=self.config.output_limit,
                body_limit=_RESULT_LIMIT,
            )
            prepared = message["ready"]
            worker = Worker(
                next(self._worker_ids), pid, zygote, link, prepared=prepared, now=self._now()
            )
            self._workers[zygote.process.pid, pid] = self._by_id[worker.id] = worker
            self._watch(channel_fd, partial(self._on_channel, worker))
            self._watch(output_fd, partial(self._on_output, worker))
            if prepared:
                self._do(self._scheduler.worker_ready(worker.id, zygote.key, self._now()))

    def _on_not_forked(self, zygote: ZygoteProcess, number: int, why: str) -> None:
        """The machine has no room for more processes now: ask again when it may have."""
        log.error("%r cannot fork: %s", zygote, why)
        zygote.unanswered -= number
        self._failures[zygote.key] = f"it cannot fork: {why}"
        self._loop.call_later(_FORK_AGAIN_S, self._fork_again, zygote, number)

    def _fork_again(self, zygote: ZygoteProcess, number: int) -> None:
        if zygote.state.now is ZygoteState.READY:
            for _ in range(number):
                self._do(self._scheduler.worker_not_ready(zygote.key, self._now()))

    def _on_channel(self, worker: Worker, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush(worker)
        try:
            frames = worker.link.read()
        except wire.BadFrame as error:
            self._on_bad_frame(worker, str(error))
            return
        if frames is None:
            # Its end, or its channel was closed by user code: EXITED says which.
            self._unwatch(worker.link.sock.fileno())
            return
        for frame in frames:
            self._on_frame(worker, frame)

    def _flush(self, worker: Worker) -> None:
        try:
            worker.link.flush()
        except OSError:
            return
        if not worker.link.blocked:
            self._epoll.modify(worker.link.sock, select.EPOLLIN)

    def _on_frame(self, worker: Worker, frame: wire.Frame) -> None:
        running = worker.running
        if frame.kind == wire.WORKER_READY:
            worker.state.move(WorkerState.SPARE)
            self._do(self._scheduler.worker_ready(worker.id, worker.zygote.key, self._now()))
        elif running is None or running.done or worker.call_id is None or worker.stop is not None:
            # Its call was cancelled meanwhile, or told that its time is up: too late.
            for fd in frame.fds:
                os.close(fd)
        elif frame.kind == wire.RESULT:
            self._on_result(worker, running, frame)
        elif frame.kind == wire.ITEM:
            running.streaming = True
            running.sink.item(frame.body, tuple(frame.fds))

    def _on_result(self, worker: Worker, running: Running, frame: wire.Frame) -> None:
        assert worker.call_id is not None
        # What it printed before its result is in the pipe by now.
        self._read_output(worker)
        modules = frame.meta.get("modules")
        if modules:
            call = running.call
            self._want(self._learner.observed(call.environment, call.function_key, modules))
        self._finish(worker.call_id, ends.answered(running, worker, frame, self._now()))
        if worker.state.now is WorkerState.BUSY:
            worker.state.move(WorkerState.ENDING)
            worker.ending_since = self._now()

    def _on_bad_frame(self, worker: Worker, problem: str) -> None:
        self._unwatch(worker.link.sock.fileno())
        if worker.call_id is None or worker.running is None or worker.running.done:
            return
        self._read_output(worker)
        cause = causes.of_bad_frame(problem, worker.link.output.tail(causes.TAIL))
        call_id, running = worker.call_id, worker.running
        self._stop_worker(worker, dump=False, grace=0.0)
        self._finish(call_id, ends.failed(running, cause, self._now(), None))

    def _on_output(self, worker: Worker, events: int) -> None:
        if self._read_output(worker) is None:
            self._unwatch(worker.link.output_fd)

    def _read_output(self, worker: Worker) -> bytes | None:
        chunk = worker.link.read_output()
        running = worker.running
        if chunk and running is not None and not running.done and running.sink.wants_output:
            running.sink.output(chunk)
        return chunk

    def _drain_link(self, worker: Worker) -> None:
        """It is dead: take what it sent before; a result that made it is a result."""
        try:
            while frames := worker.link.read():
                for frame in frames:
                    self._on_frame(worker, frame)
        except wire.BadFrame:
            pass
        for _ in range(16):
            if not self._read_output(worker):
                break

    def _on_exited(self, zygote: ZygoteProcess, message: wire.Meta) -> None:
        worker = self._workers.get((zygote.process.pid, message["worker"]))
        if worker is None:
            return
        self._drain_link(worker)
        worker.status = message["status"]
        running, call_id = worker.running, worker.call_id
        if running is not None and call_id is not None and not running.done:
            self._died_without_result(worker, running, call_id, message)
        prepared = worker.state.now is not WorkerState.PREPARING
        if not prepared:
            self._do(self._scheduler.worker_not_ready(zygote.key, self._now()))
        if message["orphans"]:
            self._scheduler.spare_died(worker.id)
        else:
            self._on_gone(zygote, worker.pid)

    def _died_without_result(
        self, worker: Worker, running: Running, call_id: int, message: wire.Meta
    ) -> None:
        again = running.call.idempotent or not message["began"]
        if (
            worker.stop is None
            and again
            and running.attempts == 1
            and not running.streaming
            and not running.call.fds
        ):
            running.try_again()
            self._limited.discard(call_id)
            self._do(self._scheduler.submitted(call_id, running.key, self._now(), again=True))
            return
        cause = causes.of_death(
            message["status"],
            stop=worker.stop,
            oom=self._oom.rose(),
            output_tail=worker.link.output.tail(causes.TAIL),
            peak_mb=round(message["rss_kb"] / 1024, 1),
        )
        self._finish(call_id, ends.failed(running, cause, self._now(), message))

    def _on_gone(self, zygote: ZygoteProcess, pid: int) -> None:
        """The worker and all that it started are gone: what it held is free."""
        worker = self._workers.get((zygote.process.pid, pid))
        if worker is not None:
            self._forget(worker)
            self._do(self._scheduler.worker_gone(worker.id, self._now()))

    def _forget(self, worker: Worker) -> None:
        worker.state.move(WorkerState.GONE)
        del self._workers[worker.zygote.process.pid, worker.pid]
        del self._by_id[worker.id]
        self._unwatch(worker.link.sock.fileno())
        self._unwatch(worker.link.output_fd)
        worker.link.close()

    # Ends.

    def _finish(self, call_id: int, outcome: Outcome) -> None:
        """The one place where a call ends."""
        running = self._calls.pop(call_id)
        running.done = True
        self._limited.discard(call_id)
        if running.timer is not None:
            running.timer.cancel()
        if running.worker is None:
            self._scheduler.withdrawn(call_id, self._now())
            for fd in running.call.fds:
                os.close(fd)
        self._recorder.ended(running.call.label, outcome)
        running.sink.done(outcome)
        if self.draining:
            self._tell_change()

    def _queued_too_long(self, call_id: int) -> None:
        running = self._calls[call_id]
        self._finish(call_id, ends.queued_too_long(running, self._now()))

    def _ran_too_long(self, call_id: int) -> None:
        self._stop_call(call_id, ends.ran_too_long(self._calls[call_id].call))

    def _stop_call(self, call_id: int, stop: causes.Stop | None) -> None:
        worker = self._calls[call_id].worker
        if worker is None or worker.stopping:
            return
        worker.stop = stop
        self._stop_worker(worker, dump=stop is not None, grace=self.config.grace_s)

    def _stop_worker(self, worker: Worker, *, dump: bool, grace: float) -> None:
        worker.stopping = True
        if worker.state.now is WorkerState.BUSY:
            worker.state.move(WorkerState.ENDING)
        worker.ending_since = self._now() + grace
        worker.zygote.send(wire.STOP, worker=worker.pid, grace=grace, dump=dump)
        self._watch_unsent(worker.zygote)

    # Time.

    def _every(self, seconds: float, act: Callable[[], None]) -> None:
        """Call it again and again until the pool is closed."""
        index = len(self._timers)

        def again() -> None:
            act()
            if not self._closed or self._leaving:
                self._timers[index] = self._loop.call_later(seconds, again)

        self._timers.append(self._loop.call_later(seconds, again))

    def _tick(self) -> None:
        now = self._now()
        self._do(self._scheduler.tick(now))
        self._oom_settle()
        for worker in list(self._workers.values()):
            self._check_worker(worker, now)
        for zygote in list(self._zygotes.values()):
            self._check_zygote(zygote, now)

    def _oom_settle(self) -> None:
        """With nothing running, a kill that was counted was nobody's of ours."""
        if not self._calls:
            self._oom.rose()

    def _check_worker(self, worker: Worker, now: float) -> None:
        """Whoever should have left by now is killed; whoever was, takes its zygote along."""
        if (
            worker.state.now is WorkerState.PREPARING
            and now - worker.since > self.config.start_timeout_s
        ):
            self._stop_worker(worker, dump=True, grace=self.config.grace_s)
        if worker.ending_since is None or worker.status is not None:
            return
        if not worker.stopping and now - worker.ending_since > self.config.grace_s:
            self._stop_worker(worker, dump=False, grace=0.0)
        elif worker.stopping and now - worker.ending_since > _STOP_MARGIN_S:
            log.error("%r does not end worker %d: it is killed", worker.zygote, worker.pid)
            worker.zygote.kill()

    def _check_zygote(self, zygote: ZygoteProcess, now: float) -> None:
        if (
            zygote.state.now is ZygoteState.STARTING
            and now - zygote.started_at > self.config.start_timeout_s
        ):
            zygote.words.append(
                b"\nIt did not come up within %g s and was killed." % self.config.start_timeout_s
            )
            zygote.kill()
        elif (
            zygote.state.now is ZygoteState.READY
            and zygote.unanswered
            and now - zygote.answered_at > _ANSWER_S
        ):
            zygote.words.append(b"\nIt did not answer for %g s and was killed." % _ANSWER_S)
            zygote.kill()

    def _look_at_memory(self) -> None:
        for call_id in list(self._limited):
            running = self._calls[call_id]
            limit = running.call.limits.memory_mb
            if running.worker is None or limit is None or running.worker.stopping:
                continue
            size = limit << 20
            if used(running.worker.pid) > size:
                measured = exact(running.worker.pid)
                if measured > size:
                    self._stop_call_now(call_id, ends.used_too_much(limit, measured))

    def _stop_call_now(self, call_id: int, stop: causes.Stop) -> None:
        worker = self._calls[call_id].worker
        if worker is not None:
            worker.stop = stop
            self._stop_worker(worker, dump=False, grace=0.0)

    # Descriptors.

    def _pump(self) -> None:
        """Serve what is ready. One round a turn, so that the loop serves others too."""
        for fd, events in self._epoll.poll(0, _TURN):
            handler = self._handlers.get(fd)
            if handler is not None:
                handler(events)

    def _watch(self, fd: int, handler: Callable[[int], None]) -> None:
        self._handlers[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def _unwatch(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _watch_unsent(self, zygote: ZygoteProcess) -> None:
        if zygote.control.fileno() in self._handlers:
            events = select.EPOLLIN | (select.EPOLLOUT if zygote.blocked else 0)
            if events != zygote.watched:
                zygote.watched = events
                self._epoll.modify(zygote.control, events)

    # Waiting.

    async def _change(self) -> None:
        assert self._changed is not None
        await self._changed.wait()
        self._changed.clear()

    def _tell_change(self) -> None:
        if self._changed is not None:
            self._changed.set()
