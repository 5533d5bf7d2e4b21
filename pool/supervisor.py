"""The supervisor: sole owner of the pool's state. It starts, watches and stops.

    submit, cancel ->  Supervisor  -- events -->  Scheduler
    sinks <- outcomes -   |    ^   <- commands --
                          v    |
               Fleet (zygotes), Crew (workers)   over one Poller

One thread, on an asyncio loop it shares with the front-end. It never runs, unpickles or
even reads what a user sent: bytes go from the front-end to a worker and back.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from . import causes, ends, scheduler, survey
from ._child import wire
from .calls import BASE_ENVIRONMENT, Call, Codec, Limits, Outcome, Sink
from .causes import Stop
from .config import PoolConfig
from .crew import STOP_MARGIN_S, Crew
from .errors import EnvironmentStartFailed, InstanceConflict, InstanceLost, Overloaded, PoolClosed
from .fleet import Fleet
from .learning import Learner
from .memory import OomWatch, exact, used
from .poller import Poller
from .residency import Residency
from .scheduler import (
    Command,
    DismissWorker,
    Dispatch,
    Fail,
    ForkWorkers,
    Grant,
    RetireZygote,
    Scheduler,
    StartZygote,
    ZygoteKey,
)
from .stats import PoolStats, Recorder
from .workers import Running, Worker
from .zygote import ZygoteProcess

#: Between looks at the memory of calls that have a limit.
_MEMORY_LOOK_S: Final = 0.05
#: After a fork failed for want of processes or descriptors.
_FORK_AGAIN_S: Final = 0.5
_BASE: Final = ZygoteKey(BASE_ENVIRONMENT)


class Supervisor:
    """Runs calls in forked workers. All methods belong to the loop's thread."""

    def __init__(self, config: PoolConfig) -> None:
        self.config = config
        self.draining = False
        #: Draining, and nobody is expected any more.
        self._refusing = False
        self._closed = False
        self._scheduler = Scheduler(
            scheduler.Policy(
                slots=config.slots,
                queue_limit=config.queue_limit,
                max_spares=config.max_spares,
                spare_idle_s=config.spare_idle_s,
                max_environments=config.max_environments,
                environment_idle_s=config.environment_idle_s,
            )
        )
        self._defaults = Limits(
            run_s=config.call_timeout_s,
            queue_s=config.queue_timeout_s,
            memory_mb=config.memory_mb,
        )
        self._learner = Learner(config.preload_learn)
        self._recorder = Recorder()
        self._oom = OomWatch()
        self._calls: dict[int, Running] = {}
        #: Of the latest call: most likely that of the next.
        self._codec = Codec.FLASH
        #: Running calls that have a memory limit.
        self._limited: set[int] = set()
        self._ids = itertools.count(1)
        self._looking: asyncio.TimerHandle | None = None
        #: Told when an environment that was added has no process and no call left.
        self.on_unused: Callable[[str], None] = _nobody
        #: Told which modules an environment's calls import, when a zygote preloads them.
        self.on_learned: Callable[[str, tuple[str, ...]], None] = _nobody

    # Life.

    async def start(self) -> None:
        """Begin; the base zygote starts in the background."""
        self._loop = asyncio.get_running_loop()
        # Not the loop's time, which is that of its last turn.
        self._now = time.monotonic
        self._changed = asyncio.Event()
        self._poller = Poller(self._loop)
        self._fleet = Fleet(self.config, self._learner, self._poller, self._now, self)
        self._crew = Crew(self.config, self._fleet, self._poller, self._now, self)
        self._residency = Residency(self.config, self._scheduler, self._crew, self, self._now)
        self._ticking = self._loop.call_later(scheduler.TICK_S, self._tick)
        self._want(_BASE)

    @property
    def ready(self) -> bool:
        """Whether a call would find its zygote up."""
        return self._scheduler.is_up(_BASE) and not self.draining

    @property
    def free_slots(self) -> int:
        """Calls that could begin now, were their zygotes up."""
        return max(0, self.config.slots - self._scheduler.busy)

    async def wait_ready(self) -> None:
        """Until the base zygote is up.

        Raises:
            EnvironmentStartFailed: it did not come up.
            PoolClosed: the pool was stopped meanwhile.
        """
        while not self._scheduler.is_up(_BASE):
            if self._closed:
                raise PoolClosed("the pool is shut down")
            failure = self._fleet.failures.get(_BASE)
            if failure is not None and _BASE not in self._fleet:
                python = self.config.base_python
                raise EnvironmentStartFailed(
                    f"the base interpreter {python} did not start: {failure}"
                )
            await self._change()

    async def drain(self, limit_s: float, first: Awaitable[object] | None = None) -> bool:
        """Refuse new calls; True when all that were accepted have ended in time.

        Until ``first`` is done, calls are taken: their environments were being made when
        this began. Whoever begins something new has looked at `draining` before.
        """
        self.draining = True
        deadline = self._now() + limit_s
        if first is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(first, limit_s)
        self._refusing = True
        while self._calls and self._now() < deadline:
            await self._change(deadline - self._now())
        await self._close_residents()
        return not self._calls

    async def _close_residents(self) -> None:
        """Let instances close themselves, those that nobody calls."""
        self._residency.close_idle("the server drains")
        deadline = self._now() + self.config.grace_s
        while self._residency.any_left and self._now() < deadline:
            await self._change(deadline - self._now())

    async def stop(self, reason: str = "the pool is shut down") -> None:
        """End every call as cancelled and every process; returns when all is gone."""
        if self._closed:
            return
        self.draining = self._refusing = self._closed = True
        for call_id, running in list(self._calls.items()):
            self.finish(call_id, ends.cancelled(running, reason, self._now()))
        self._fleet.retire_all()
        deadline = self._now() + STOP_MARGIN_S
        while not self._fleet.all_left:
            if self._now() > deadline:
                self._fleet.kill_leaving()
            await self._change(0.5)
        self._ticking.cancel()
        if self._looking is not None:
            self._looking.cancel()
        self._poller.close()

    # Environments.

    def add_environment(self, name: str, python: str, preload: Iterable[str] = ()) -> None:
        """Calls may name this environment from now on, until `on_unused` is told of it.

        A call must be submitted in the same turn of the loop, or the environment may be
        unused before it is used. ``preload``: what its calls imported at another time.
        """
        if name not in self._fleet.pythons:
            self._fleet.pythons[name] = python
            self._learner.seed(name, preload)

    def has_environment(self, name: str) -> bool:
        """Whether calls may name it."""
        return name in self._fleet.pythons

    def retire_idle(self, name: str) -> None:
        """Let an environment's processes go, unless a call uses it."""
        self.do(self._scheduler.retire_idle(name, self._now()))

    def _forget_unused(self) -> None:
        if self._closed:
            return
        for name in list(self._fleet.pythons):
            if name != BASE_ENVIRONMENT and not self._scheduler.uses(name):
                self._fleet.forget(name)
                self._learner.forget(name)
                self.on_unused(name)

    # Calls.

    def submit(self, call: Call, sink: Sink) -> int:
        """Take a call; its sink hears of it from now on. Returns its id.

        Raises:
            Overloaded: the queue is full, or the pool drains.
            PoolClosed: the pool is shut down.
        """
        if self._closed:
            raise PoolClosed("the pool is shut down")
        if self._refusing:
            raise Overloaded(
                "the server is draining and takes no more calls; send it to another worker",
                retry_after_s=1,
            )
        call_id = next(self._ids)
        now = self._now()
        key = self._learner.route(call.environment, call.function_key)
        limits = call.limits.or_else(self._defaults)
        running = self._calls[call_id] = Running(call, sink, key, limits, now)
        try:
            self._enqueue(call_id, running)
        except (InstanceConflict, InstanceLost):
            del self._calls[call_id]
            raise
        except scheduler.QueueFull:
            del self._calls[call_id]
            self._recorder.refused += 1
            raise Overloaded(
                f"the queue is full: {self.config.queue_limit} calls wait already; "
                "send it again later, or raise FLASHPOOL_QUEUE_LIMIT",
                retry_after_s=1,
            ) from None
        self._codec = call.codec
        return call_id

    def _enqueue(self, call_id: int, running: Running) -> None:
        waiting_in_residents = self._residency.table.waiting
        if running.call.want is not None:
            self._scheduler.check_room(waiting_in_residents)
            self._residency.submit(call_id, running)
            return
        self.do(
            self._scheduler.submitted(
                call_id, running.key, running.submitted_at, beside=waiting_in_residents
            )
        )
        if running.worker is None and not running.done:
            self.limit(running, running.limits.queue_s, lambda: self.queued_too_long(call_id))

    def cancel(self, call_id: int, reason: str = "cancelled") -> None:
        """End a call; its sink hears of it at once, its process tree goes meanwhile."""
        running = self._calls.get(call_id)
        if running is None:
            return
        if running.call.want is not None:
            self._residency.cancel(call_id, running, reason)
        elif running.worker is not None and not running.worker.stopping:
            self._crew.stop(running.worker, None, grace=self.config.grace_s)
        self.finish(call_id, ends.cancelled(running, reason, self._now()))

    def credit(self, call_id: int, items: int) -> None:
        """The sink took that many items of a stream: the worker may send as many more."""
        running = self._calls.get(call_id)
        if running is None or running.worker is None:
            return
        if running.call.want is not None:
            self._residency.credit(call_id, running.worker, items)
        else:
            self._crew.credit(running.worker, items)

    def release(self, instance: str, reason: str) -> None:
        """Close an instance when its calls are over."""
        self._residency.release(instance, reason)

    def stats(self) -> PoolStats:
        """The pool as it is now."""
        return survey.of_pool(
            now=self._now(),
            ready=self.ready,
            draining=self.draining,
            config=self.config,
            scheduler=self._scheduler,
            fleet=self._fleet,
            crew=self._crew,
            residency=self._residency,
            calls=self._calls,
            learner=self._learner,
            recorder=self._recorder,
        )

    # The scheduler's commands.

    def do(self, commands: Iterable[Command]) -> None:
        for command in commands:
            if isinstance(command, Dispatch):
                self._dispatch(command.call, self._crew[command.worker])
            elif isinstance(command, Grant):
                self._residency.granted(self._crew[command.worker])
            elif isinstance(command, ForkWorkers):
                # Spares that somebody waits for already have no time to limber up.
                practise = "" if self._scheduler.waiting else self._codec.value
                self._fleet.fork(command.key, command.number, practise)
            elif isinstance(command, DismissWorker):
                self._crew.dismiss(self._crew[command.worker])
            elif isinstance(command, StartZygote):
                self._start_zygote(command.key)
            elif isinstance(command, RetireZygote) and command.key in self._fleet:
                # It may just have died, before it had a worker.
                self._fleet.retire(self._fleet[command.key])
            elif isinstance(command, Fail):
                self._fail(command)

    def _fail(self, failed: Fail) -> None:
        if self._residency.loads(failed.call):
            self._residency.not_started(failed.call, failed.key, failed.reason)
        else:
            self.finish(failed.call, ends.start_failed(failed.key.environment, failed.reason))

    def _dispatch(self, call_id: int, worker: Worker) -> None:
        if self._residency.loads(call_id):
            self._residency.dispatched(call_id, worker)
            return
        running = self._calls[call_id]
        self._crew.hand_over(worker, call_id, running)
        self.begin(call_id, running)

    # What residents need of the supervisor (`residency.Host`).

    def new_id(self) -> int:
        """A number for a call."""
        return next(self._ids)

    def running(self, call_id: int) -> Running:
        """A call that has not ended."""
        return self._calls[call_id]

    def route(self, call: Call) -> ZygoteKey:
        """The zygote its worker is to come from."""
        return self._learner.route(call.environment, call.function_key)

    def learn(self, call: Call, modules: list[str]) -> None:
        """A call imported these."""
        if modules:
            self._want(self._learner.observed(call.environment, call.function_key, modules))

    def limit(self, running: Running, seconds: float | None, late: Callable[[], None]) -> None:
        """Have something done about a call after so many seconds, in place of what was."""
        running.cancel_timer()
        if seconds is not None:
            running.timer = self._loop.call_later(seconds, late)

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call a function then."""
        self._loop.call_later(seconds, function)

    def begin(self, call_id: int, running: Running) -> None:
        """A call was handed to its worker: tell its sink, start its limits."""
        started = getattr(running.sink, "started", None)
        if started is not None:
            started()
        limits = running.limits
        self.limit(running, limits.run_s, lambda: self._ran_too_long(call_id))
        if limits.memory_mb is not None:
            self._limited.add(call_id)
            self._watch_memory()

    def _start_zygote(self, key: ZygoteKey) -> None:
        if not self._fleet.start(key):
            # Told from the loop: the scheduler is in the middle of an event.
            self._loop.call_soon(self.zygote_lost, key, None, self._fleet.failures[key])

    def _want(self, key: ZygoteKey | None) -> None:
        if key is not None and not self._closed:
            self.do(self._scheduler.wanted(key, self._now()))

    # What zygotes report (`fleet.Listener`).

    def zygote_ready(self, zygote: ZygoteProcess) -> None:
        """It can fork; what it replaces may go."""
        self.do(self._scheduler.zygote_ready(zygote.key, self._now()))
        replaced = self._learner.started(zygote.key)
        if zygote.key.profile and zygote.key.environment != BASE_ENVIRONMENT:
            self.on_learned(zygote.key.environment, self._learner.modules(zygote.key))
        if replaced is not None:
            self.do(self._scheduler.retire(replaced, zygote.key, self._now()))
        self._want(self._learner.behind(zygote.key.environment))
        self.changed()

    def zygote_lost(self, key: ZygoteKey, zygote: ZygoteProcess | None, reason: str) -> None:
        """It is gone: its workers' calls fail, or wait for the next start."""
        curable = zygote is not None and zygote.curable
        if key.profile and (zygote is None or not zygote.forked):
            # What it should have preloaded may be to blame: calls need not have it.
            lean = ZygoteKey(key.environment)
            self.do(self._scheduler.retire(key, lean, self._now()))
        commands = self._scheduler.zygote_lost(key, reason, self._now(), curable=curable)
        for worker in self._crew.of(zygote):
            self._fail_with_zygote(worker, reason)
            self._crew.forget(worker)
        self.do(commands)
        if key == _BASE and zygote is not None and (zygote.ready_at is not None or curable):
            self._want(key)
        self.changed()

    def _fail_with_zygote(self, worker: Worker, reason: str) -> None:
        running = worker.running
        if worker.instance is not None:
            self._residency.lost(worker, causes.of_lost_zygote(reason, ""), None)
        if running is None or running.done or worker.call_id is None:
            return
        cause = causes.of_lost_zygote(reason, worker.link.output.tail(causes.TAIL))
        self.finish(worker.call_id, ends.failed(running, cause, self._now(), None))

    def spares(self, zygote: ZygoteProcess, pids: list[int], fds: list[int], ready: bool) -> None:
        """It forked."""
        self._crew.welcome(zygote, pids, fds, ready=ready)

    def not_forked(self, zygote: ZygoteProcess, number: int) -> None:
        """The machine has no room for more processes now: ask again when it may have."""

        def again() -> None:
            if zygote in self._fleet:
                for _ in range(number):
                    self.do(self._scheduler.worker_not_ready(zygote.key, self._now()))

        self._loop.call_later(_FORK_AGAIN_S, again)

    def exited(self, zygote: ZygoteProcess, death: wire.Exited) -> None:
        """A worker is dead."""
        self._crew.exited(zygote, death)

    def gone(self, zygote: ZygoteProcess, pid: int) -> None:
        """What a dead worker had left is gone."""
        self._crew.gone(zygote, pid)

    # What workers report (`crew.Listener`).

    def worker_ready(self, worker: Worker) -> None:
        """It waits for a call."""
        self.do(self._scheduler.worker_ready(worker.id, worker.zygote.key, self._now()))

    def worker_not_ready(self, worker: Worker) -> None:
        """It will never take one."""
        self.do(self._scheduler.worker_not_ready(worker.zygote.key, self._now()))

    def item(self, worker: Worker, running: Running, frame: wire.Frame) -> None:
        """A generator yielded."""
        running.streaming = True
        running.sink.item(frame.body, tuple(frame.fds))

    def result(
        self, worker: Worker, running: Running, frame: wire.Frame, meta: wire.ResultMeta
    ) -> None:
        """A call ended by itself."""
        assert worker.call_id is not None
        self.learn(running.call, meta.more.get("modules", []))
        self.finish(worker.call_id, ends.answered(running, frame, meta, self._now()))

    def spoilt(self, worker: Worker, running: Running, problem: str) -> None:
        """User code wrote to the channel."""
        assert worker.call_id is not None
        cause = causes.of_bad_frame(problem, worker.link.output.tail(causes.TAIL))
        self.finish(worker.call_id, ends.failed(running, cause, self._now(), None))

    def stillborn(self, worker: Worker, death: wire.Exited) -> None:
        """It ended before user code began: calls need not have what its zygote preloaded."""
        zygote = worker.zygote
        if self._fleet.stillborn(zygote, causes.exit_words(death.status)):
            lean = ZygoteKey(zygote.key.environment)
            self.do(self._scheduler.retire(zygote.key, lean, self._now()))
            if lean != _BASE:
                self.on_learned(lean.environment, ())

    def died(self, worker: Worker, running: Running, death: wire.Exited) -> None:
        """A worker died without a result: once more, if nothing of the call had run."""
        call_id = worker.call_id
        assert call_id is not None
        if _not_its_fault(worker, death) and running.may_run_again(began=death.began):
            running.try_again()
            self._limited.discard(call_id)
            call = running.call
            # Not where it was: that zygote may be on its way out.
            running.key = self._learner.route(call.environment, call.function_key)
            self.do(self._scheduler.submitted(call_id, running.key, self._now(), again=True))
            return
        cause = causes.of_death(
            death.status,
            stop=worker.stop
            or (causes.NEVER_BEGAN if worker.doubted and not death.began else None),
            oom=self._oom.rose(),
            output_tail=worker.link.output.tail(causes.TAIL),
            peak_mb=round(death.rss_kb / 1024, 1),
        )
        self.finish(call_id, ends.failed(running, cause, self._now(), death))

    def worker_dead(self, worker: Worker) -> None:
        """It is no spare any more, but its slot is not free yet."""
        self._scheduler.spare_died(worker.id)

    def worker_gone(self, worker: Worker) -> None:
        """Its slot is free."""
        self.do(self._scheduler.worker_gone(worker.id, self._now()))
        self._residency.gone(worker)

    def resident_sent(self, worker: Worker, frame: wire.Frame) -> None:
        """Something of one of its calls."""
        self._residency.sent(worker, frame)

    def resident_spoilt(self, worker: Worker, problem: str) -> None:
        """Something else than a frame came over its channel."""
        self._residency.lost(worker, causes.of_bad_frame(problem, ""), None)

    def resident_died(self, worker: Worker, death: wire.Exited) -> None:
        """It died, with the calls in it."""
        self._residency.died(worker, death, self._oom.rose())

    # Ends.

    def finish(self, call_id: int, outcome: Outcome) -> None:
        """The one place where a call ends."""
        running = self._calls.pop(call_id)
        running.done = True
        running.cancel_timer()
        self._limited.discard(call_id)
        if running.call.want is not None:
            self._residency.withdraw(call_id, running)
        elif running.worker is None:
            self._scheduler.withdrawn(call_id, self._now())
        running.close_fds()
        self._recorder.ended(running.call.label, outcome)
        running.sink.done(outcome)
        if self.draining:
            self.changed()

    def queued_too_long(self, call_id: int) -> None:
        """It waited for longer than it may."""
        self.finish(call_id, ends.queued_too_long(self._calls[call_id], self._now()))

    def _ran_too_long(self, call_id: int) -> None:
        running = self._calls[call_id]
        worker = running.worker
        if worker is not None:
            # Its result may be here, if it was this process that was held up.
            self._crew.catch_up(worker)
        if (
            worker is not None
            and not running.done
            and running.limits.run_s is not None
            and not worker.stopping
        ):
            stop = ends.ran_too_long(running.limits.run_s)
            self._stop(call_id, running, stop, grace=self.config.grace_s)

    def _stop(self, call_id: int, running: Running, stop: Stop, *, grace: float) -> None:
        if running.call.want is not None:
            self._residency.stop(call_id, running, stop, grace=grace)
        elif running.worker is not None:
            self._crew.stop(running.worker, stop, grace=grace, dump=grace > 0)

    # Time.

    def _tick(self) -> None:
        """Once a second: what is late, idle or forgotten."""
        self._ticking = self._loop.call_later(scheduler.TICK_S, self._tick)
        self.do(self._scheduler.tick(self._now()))
        self._forget_unused()
        self._residency.tick()
        self._crew.check()
        self._fleet.check()
        if _BASE not in self._fleet:
            # Without it no probe says "ready", and so no call comes that would start it.
            self._want(_BASE)
        if not self._calls:
            # With nothing running, a kill that the kernel counted was of nobody of ours.
            self._oom.rose()

    def _watch_memory(self) -> None:
        """Look at it again soon, while there is a call that has a limit."""
        if self._limited and self._looking is None:
            self._looking = self._loop.call_later(_MEMORY_LOOK_S, self._look_at_memory)

    def _look_at_memory(self) -> None:
        self._looking = None
        self._watch_memory()
        for call_id in list(self._limited):
            running = self._calls[call_id]
            limit_mb, worker = running.limits.memory_mb, running.worker
            if limit_mb is None or worker is None or worker.stopping:
                continue
            if used(worker.pid) > limit_mb << 20:
                measured = exact(worker.pid)
                if measured > limit_mb << 20:
                    stop = ends.used_too_much(limit_mb, measured)
                    self._stop(call_id, running, stop, grace=0.0)

    # Waiting.

    async def _change(self, seconds: float | None = None) -> None:
        """Until something happened that a waiting coroutine may be waiting for."""
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except asyncio.TimeoutError:
            return
        self._changed.clear()

    def changed(self) -> None:
        self._changed.set()


def _not_its_fault(worker: Worker, death: wire.Exited) -> bool:
    """Whether the call had no part in its worker's death; a large one needs memory to begin."""
    stop = worker.stop
    return stop is None or (not death.began and stop.error_type != "OutOfMemory")


def _nobody(*_told: object) -> None:
    """Nobody has asked to be told."""
