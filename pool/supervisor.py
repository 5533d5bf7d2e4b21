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
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from . import causes, ends, survey
from ._child import wire
from .accepted import Accepted
from .calls import BASE_ENVIRONMENT, Call, Codec, Sink
from .commands import (
    Command,
    DismissWorker,
    Dispatch,
    Fail,
    ForkWorkers,
    Grant,
    Policy,
    QueueFull,
    RetireZygote,
    StartZygote,
    ZygoteKey,
)
from .config import PoolConfig
from .crew import STOP_MARGIN_S, Crew
from .errors import EnvironmentStartFailed, FlashpoolError, Overloaded, PoolClosed
from .fleet import Fleet
from .gpu_access import GpuAccess
from .learning import Learner
from .memory import OomWatch
from .poller import Poller
from .residency import Residency
from .scheduler import TICK_S, Scheduler
from .stats import PoolStats, Recorder
from .workers import Running, Worker
from .zygote import ZygoteProcess

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
        # Not the loop's time, which is that of its last turn.
        self._now = time.monotonic
        self._gpus = GpuAccess(config, self._now)
        self._scheduler = Scheduler(
            Policy(
                slots=config.slots,
                queue_limit=config.queue_limit,
                max_spares=config.max_spares,
                spare_idle_s=config.spare_idle_s,
                max_environments=config.max_environments,
                environment_idle_s=config.environment_idle_s,
            ),
            self._gpus.table,
        )
        self._learner = Learner(config.preload_learn)
        self._recorder = Recorder()
        self._oom = OomWatch()
        #: Of the latest call: most likely that of the next.
        self._codec = Codec.FLASH
        #: Told when an environment that was added has no process and no call left.
        self.on_unused: Callable[[str], None] = _nobody
        #: Environments to let go of when their last resident is gone.
        self._unwanted: set[str] = set()
        #: Told which modules an environment's calls import, when a zygote preloads them.
        self.on_learned: Callable[[str, tuple[str, ...]], None] = _nobody

    # Life.

    async def start(self) -> None:
        """Begin; the base zygote starts in the background."""
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._poller = Poller(self._loop)
        self._gpus.watch.on_change = self._gpus_changed
        await self._gpus.open()
        config = self._gpus.for_zygotes()
        self._fleet = Fleet(config, self._learner, self._poller, self._now, self)
        self._crew = Crew(self.config, self._fleet, self._poller, self._now, self)
        self._calls = Accepted(
            self.config,
            scheduler=self._scheduler,
            crew=self._crew,
            recorder=self._recorder,
            now=self._now,
            ended=self._call_ended,
        )
        self._residency = Residency(
            self.config,
            scheduler=self._scheduler,
            crew=self._crew,
            calls=self._calls,
            gpus=self._gpus,
            now=self._now,
            host=self,
        )
        self._calls.residency = self._residency
        self._ticking = self._loop.call_later(TICK_S, self._tick)
        self._want(_BASE)

    @property
    def ready(self) -> bool:
        """Whether a call would find its zygote up, and a GPU that may be used if it needs one."""
        return self._scheduler.is_up(_BASE) and not self.draining and not self.unfit

    @property
    def unfit(self) -> str:
        """Why calls cannot be served here for now, although all is up; or nothing."""
        return self._gpus.unfit

    def check_gpus(self, asked: int | None) -> None:
        """Refuse what asks for more GPUs than there are.

        Raises:
            InvalidRequest: it does.
            Overloaded: there should be some, and they cannot be listed for now.
        """
        self._gpus.number(asked)

    @property
    def slots(self) -> int:
        """Calls of the usual kind that can run at once."""
        return self._gpus.calls if self._gpus.per_call else self.config.slots

    @property
    def free_slots(self) -> int:
        """Calls of the usual kind that could begin now, were their zygotes up."""
        if self._gpus.per_call:
            return self._gpus.free_calls(self._residency.room.idle_gpus)
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
        await self._close_instances("the server drains")
        return not self._calls

    async def _close_instances(self, reason: str) -> None:
        """Let instances close themselves, those that nobody calls."""
        self._residency.close_idle(reason)
        deadline = self._now() + self.config.grace_s
        while self._residency.any_closing and self._now() < deadline:
            await self._change(deadline - self._now())

    async def stop(self, reason: str = "the pool is shut down") -> None:
        """End every call as cancelled and every process; returns when all is gone."""
        if self._closed:
            return
        self.draining = self._refusing = self._closed = True
        self._calls.end_all(reason)
        await self._close_instances(reason)
        self._fleet.retire_all()
        deadline = self._now() + STOP_MARGIN_S
        while not self._fleet.all_left:
            if self._now() > deadline:
                self._fleet.kill_leaving()
            await self._change(0.5)
        self._ticking.cancel()
        await self._residency.room.close()
        self._calls.close()
        self._poller.close()
        await self._gpus.close()

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

    def retire_idle(self, name: str) -> bool:
        """Let an environment's processes go, unless a call uses it: then False."""
        if self._scheduler.is_idle(name):
            self.do(self._scheduler.retire_idle(name, self._now()))
            return True
        if not self._scheduler.is_kept_by_residents(name):
            return False
        reason = "its environment is to be deleted, to make room on the disk"
        if not self._residency.room.leave_environment(name, reason):
            return False
        # It goes when they have closed themselves.
        self._unwanted.add(name)
        return True

    def _forget_unused(self, *names: str) -> None:
        """These, or all, that have neither a process nor a call."""
        if self._closed:
            return
        for name in names or list(self._fleet.pythons):
            if name not in self._fleet.pythons or name == BASE_ENVIRONMENT:
                continue
            if not self._scheduler.uses(name):
                self._fleet.forget(name)
                self._learner.forget(name)
                self._unwanted.discard(name)
                self.on_unused(name)

    # Calls.

    def submit(self, call: Call, sink: Sink) -> int:
        """Take a call; its sink hears of it from now on. Returns its id.

        Raises:
            Overloaded: the queue is full, or the pool drains.
            InstanceConflict, InstanceLost: the instance it is for is another, or no more.
            InvalidRequest: it asks for more GPUs than there are.
            PoolClosed: the pool is shut down.
        """
        if self._closed:
            raise PoolClosed("the pool is shut down")
        if self._refusing:
            raise Overloaded(
                "the server is draining and takes no more calls; send it to another worker",
                retry_after_s=1,
            )
        gpus = self._gpus.number(call.gpus)
        key = self._learner.route(call.environment, call.function_key)
        call_id = self._calls.accept(call, sink, key)
        try:
            self._enqueue(call_id, key, gpus)
        except FlashpoolError:
            self._calls.refuse(call_id)
            raise
        except QueueFull:
            self._calls.refuse(call_id)
            raise Overloaded(
                f"the queue is full: {self.config.queue_limit} calls wait already; "
                "send it again later, or raise FLASHPOOL_QUEUE_LIMIT",
                retry_after_s=1,
            ) from None
        self._codec = call.codec
        return call_id

    def _enqueue(self, call_id: int, key: ZygoteKey, gpus: int) -> None:
        beside = self._residency.table.waiting - self._residency.loads_waiting
        self._calls[call_id].gpus_wanted = gpus
        if self._calls[call_id].call.want is not None:
            self._scheduler.check_room(gpus, beside)
            self._residency.submit(call_id)
            return
        self.do(self._scheduler.submitted(call_id, key, self._now(), gpus=gpus, beside=beside))
        self._calls.waits(call_id)

    def cancel(self, call_id: int, reason: str = "cancelled") -> None:
        """End a call; its sink hears of it at once, its process tree goes meanwhile."""
        self._calls.cancel(call_id, reason)

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
            unfit=self.unfit,
            draining=self.draining,
            gpus=self._gpus.stats(),
            config=self.config,
            scheduler=self._scheduler,
            fleet=self._fleet,
            crew=self._crew,
            residency=self._residency,
            calls=self._calls.by_id,
            learner=self._learner,
            recorder=self._recorder,
        )

    # The scheduler's commands.

    def do(self, commands: Iterable[Command]) -> None:
        """Carry them out."""
        for command in commands:
            if isinstance(command, Dispatch):
                self._dispatch(command.call, self._crew[command.worker], command.gpus)
            elif isinstance(command, Grant):
                self._grant(command.worker)
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
        self._residency.room.give_up(crowded=self._scheduler.crowded)

    def _grant(self, worker: int) -> None:
        if worker in self._crew:  # else it went down with its zygote just now
            self._residency.granted(self._crew[worker])

    def _fail(self, failed: Fail) -> None:
        if self._residency.loads(failed.call):
            self._residency.not_started(failed.call, failed.key, failed.reason)
        else:
            outcome = ends.start_failed(failed.key.environment, failed.reason)
            self._calls.finish(failed.call, outcome)

    def _dispatch(self, call_id: int, worker: Worker, gpus: tuple[str, ...]) -> None:
        if self._residency.loads(call_id):
            self._residency.dispatched(call_id, worker, gpus)
            return
        running = self._calls[call_id]
        running.gpus = gpus
        env = self._gpus.variables(gpus, running.call.env)
        self._crew.hand_over(worker, call_id, running, env)
        self._calls.handed_over(call_id)

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
        self._reroute(zygote.key)
        self._want(self._learner.behind(zygote.key.environment))
        self.changed()

    def _reroute(self, key: ZygoteKey) -> None:
        """Have calls that came before anybody knew what they import wait here, where it is.

        Else a thousand that came at once would all import it.
        """
        calls = [
            call_id
            for call_id, running in self._calls.by_id.items()
            if running.worker is None and running.call.want is None and running.key != key
            if running.call.environment == key.environment and self.route(running.call) == key
        ]
        for call_id in calls:
            self._calls[call_id].key = key
        if calls:
            self.do(self._scheduler.rerouted(calls, key, self._now()))

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
        # Not with the next tick: somebody may wait for the room that it takes.
        self._forget_unused(key.environment)
        self.changed()

    def _fail_with_zygote(self, worker: Worker, reason: str) -> None:
        running = worker.running
        if worker.instance is not None:
            self._residency.lost(worker, causes.of_lost_zygote(reason, ""), None)
        if running is None or running.done or worker.call_id is None:
            return
        cause = causes.of_lost_zygote(reason, worker.link.output.tail(causes.TAIL))
        self._calls.finish(worker.call_id, ends.failed(running, cause, self._now(), None))

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
        if running.call.source:
            self._fleet.ran(worker.zygote, running.call)
        self._calls.finish(worker.call_id, ends.answered(running, frame, meta, self._now()))

    def learn(self, call: Call, modules: list[str]) -> None:
        """A call imported these."""
        if modules:
            self._want(self._learner.observed(call.environment, call.function_key, modules))

    def route(self, call: Call) -> ZygoteKey:
        """The zygote its worker is to come from."""
        return self._learner.route(call.environment, call.function_key)

    def spoilt(self, worker: Worker, running: Running, problem: str) -> None:
        """User code wrote to the channel."""
        assert worker.call_id is not None
        cause = causes.of_bad_frame(problem, worker.link.output.tail(causes.TAIL))
        self._calls.finish(worker.call_id, ends.failed(running, cause, self._now(), None))

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
            call = running.call
            # Not where it was: that zygote may be on its way out.
            key = self._learner.route(call.environment, call.function_key)
            self._calls.again(call_id, key)
            now, gpus = self._now(), running.gpus_wanted
            self.do(self._scheduler.submitted(call_id, key, now, gpus=gpus, again=True))
            return
        cause = causes.of_death(
            death.status,
            stop=worker.stop
            or (causes.NEVER_BEGAN if worker.doubted and not death.began else None),
            oom=self._oom.rose(),
            output_tail=worker.link.output.tail(causes.TAIL),
            peak_mb=round(death.rss_kb / 1024, 1),
        )
        self._calls.finish(call_id, ends.failed(running, cause, self._now(), death))

    def worker_dead(self, worker: Worker) -> None:
        """It is no spare any more, but its slot is not free yet."""
        self._scheduler.spare_died(worker.id)

    def worker_gone(self, worker: Worker) -> None:
        """Its slot is free, and its GPUs are to be looked at."""
        self.do(self._scheduler.worker_gone(worker.id, self._now()))
        self._gpus.given_back()
        self._residency.gone(worker)
        environment = worker.zygote.key.environment
        if environment in self._unwanted and self._scheduler.is_idle(environment):
            self._unwanted.remove(environment)
            self.do(self._scheduler.retire_idle(environment, self._now()))

    def resident_sent(self, worker: Worker, frame: wire.Frame) -> None:
        """Something of one of its calls."""
        self._residency.sent(worker, frame)

    def resident_spoilt(self, worker: Worker, problem: str) -> None:
        """Something else than a frame came over its channel."""
        self._residency.lost(worker, causes.of_bad_frame(problem, ""), None)

    def resident_died(self, worker: Worker, death: wire.Exited) -> None:
        """It died, with the calls in it."""
        self._residency.died(worker, death, self._oom.rose())

    # What the GPUs' watch reports.

    def _gpus_changed(self) -> None:
        if not self._closed:
            self.do(self._scheduler.gpus_changed(self._now()))

    # Time.

    def _tick(self) -> None:
        """Once a second: what is late, idle or forgotten."""
        self._ticking = self._loop.call_later(TICK_S, self._tick)
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

    # Waiting.

    async def _change(self, seconds: float | None = None) -> None:
        """Until something happened that a waiting coroutine may be waiting for."""
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except asyncio.TimeoutError:
            return
        self._changed.clear()

    def changed(self) -> None:
        """Something happened that a waiting coroutine may be waiting for."""
        self._changed.set()

    def _call_ended(self) -> None:
        if self._gpus.table.waiting:
            # It may have been the first in line, and what was kept for it is for others now.
            self._loop.call_soon(self._gpus_changed)
        if self.draining:
            self.changed()


def _not_its_fault(worker: Worker, death: wire.Exited) -> bool:
    """Whether the call had no part in its worker's death; a large one needs memory to begin."""
    stop = worker.stop
    return stop is None or (not death.began and stop.error_type != "OutOfMemory")


def _nobody(*_told: object) -> None:
    """Nobody has asked to be told."""
