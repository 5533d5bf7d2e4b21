"""The supervisor: sole owner of the pool's state. It starts, watches and stops.

    submit, cancel --> CallTable -- events --> Scheduler
    sinks <-- outcomes ---'  ^                     | commands
                             |                     v
                       ProcessEvents          CommandRunner
                             ^                     |
                             '-- ZygoteSet, WorkerSet (over one Poller)

One thread, on an asyncio loop it shares with the front-end. It never runs, unpickles or
even reads what a user sent: bytes go from the front-end to a worker and back. Here is what
others may ask of it, and its life: `start`, a tick each second, `drain`, `stop`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from flashpool.pool.calls import Call, Sink
from flashpool.pool.config import PoolConfig
from flashpool.pool.errors import (
    CallError,
    EnvironmentStartFailed,
    FlashpoolError,
    Overloaded,
    PoolClosed,
)
from flashpool.pool.scheduling.commands import QueueFull, ZygoteKey
from flashpool.pool.scheduling.scheduler import TICK_S
from flashpool.pool.stats import PoolStats
from flashpool.pool.workers.watchdog import STOP_MARGIN_S
from flashpool.pool.workers.worker import ActiveCall

from . import stats_snapshot
from .command_runner import CommandRunner
from .components import BASE, ChangeSignal, Components
from .environment_registry import EnvironmentRegistry
from .process_events import ProcessEvents

#: Between two ticks, beyond which this process was not running.
HELD_UP_S: Final = 5.0


class Supervisor:
    """Runs calls in forked workers. All methods belong to the loop's thread."""

    def __init__(self, config: PoolConfig) -> None:
        self.config = config
        self.draining = False
        #: Draining, and nobody is expected any more.
        self._refusing = False
        #: Told when an environment that was added has no process and no call left.
        self.on_unused: Callable[[str], None] = _nobody
        #: Told which modules an environment's calls import, when a zygote preloads them, and
        #: which packages the sources of those calls name.
        self.on_learned: Callable[[str, tuple[str, ...], tuple[str, ...]], None] = _nobody
        self._components = components = Components(config)
        self._change = ChangeSignal()
        self._actions = CommandRunner(components, self._change)
        self._environments = EnvironmentRegistry(components, self._actions, self)
        self._reports = ProcessEvents(components, self._actions, self._environments)

    # Life.

    async def start(self) -> None:
        """Begin; the base zygote starts in the background."""
        self._components.gpus.watch.on_change = self._gpus_changed
        await self._components.open(
            listener=self._reports, host=self._actions, call_ended=self._call_ended
        )
        self._ticked_at = self._components.now()
        self._ticking = self._components.loop.call_later(TICK_S, self._tick)
        self._actions.want(BASE)

    def _tick(self) -> None:
        """Once a second: what is late, idle or forgotten."""
        components = self._components
        self._ticking = components.loop.call_later(TICK_S, self._tick)
        now, before = components.now(), self._ticked_at
        self._ticked_at = now
        self._actions.do(components.scheduler.tick(components.now()))
        self._environments.forget_unused()
        components.residents.tick()
        if now - before > HELD_UP_S:
            # It was we who stood still, and perhaps they did too, as in a paused container:
            # nobody is to blame for what has not come about meanwhile.
            components.watchdog.resumed()
        else:
            components.watchdog.check()
        if BASE not in components.zygote_set:
            # Without it no probe says "ready", and so no call comes that would start it.
            self._actions.want(BASE)
        if not components.calls:
            # With nothing running, a kill that the kernel counted was of nobody of ours.
            components.oom.rose()

    def _gpus_changed(self) -> None:
        components = self._components
        if not components.closed:
            self._actions.do(components.scheduler.gpus_changed(components.now()))

    def _call_ended(self) -> None:
        if self._components.gpus.table.waiting:
            # It may have been the first in line, and what was kept for it is for others now.
            self._components.loop.call_soon(self._gpus_changed)
        if self.draining:
            self._change.tell()

    async def wait_ready(self) -> None:
        """Until the base zygote is up.

        Raises:
            EnvironmentStartFailed: it did not come up.
            PoolClosed: the pool was stopped meanwhile.
        """
        zygote_set = self._components.zygote_set
        while not self._components.scheduler.is_up(BASE):
            if self._components.closed:
                raise PoolClosed("the pool is shut down")
            failure = zygote_set.history.failures.get(BASE)
            if failure is not None and BASE not in zygote_set:
                python = self.config.base_python
                raise EnvironmentStartFailed(
                    f"the base interpreter {python} did not start: {failure}"
                )
            await self._change.wait()

    async def drain(self, limit_s: float, first: Awaitable[object] | None = None) -> bool:
        """Refuse new calls; True when all that were accepted have ended in time.

        Until ``first`` is done, calls are taken: their environments were being made when
        this began. Whoever begins something new has looked at `draining` before.
        """
        self.draining = True
        now, calls = self._components.now, self._components.calls
        deadline = now() + limit_s
        if first is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(first, limit_s)
        self._refusing = calls.awaited = True
        while calls and now() < deadline:
            await self._change.wait(deadline - now())
        await self._close_instances("the server drains")
        return not calls

    async def _close_instances(self, reason: str) -> None:
        """Let instances close themselves, those that nobody calls."""
        now, residents = self._components.now, self._components.residents
        residents.close_idle(reason)
        deadline = now() + self.config.grace_s
        while residents.any_closing and now() < deadline:
            await self._change.wait(deadline - now())

    async def _let_end(self) -> None:
        """Give what was asked to end the grace: calls' processes, and instances."""
        components = self._components
        deadline = components.now() + self.config.grace_s
        while components.residents.any_left or any(
            worker.stopping for worker in components.worker_set
        ):
            left = deadline - components.now()
            if left <= 0:
                return
            await self._change.wait(left)

    async def stop(self, reason: str = "the pool is shut down") -> None:
        """End every call as cancelled and every process; returns when all is gone.

        Who runs is asked to end (SIGTERM) and has the grace for that.
        """
        components = self._components
        if components.closed:
            return
        self.draining = self._refusing = components.closed = True
        components.calls.cancel_all(reason)
        components.residents.release_all(reason)
        await self._let_end()
        components.zygote_set.retire_all()
        deadline = components.now() + STOP_MARGIN_S
        while not components.zygote_set.all_left:
            if components.now() > deadline:
                components.zygote_set.kill_leaving()
            await self._change.wait(0.5)
        self._ticking.cancel()
        await components.close()

    # What it has room for.

    @property
    def ready(self) -> bool:
        """Whether a call would find its zygote up, and a GPU that may be used if it needs one."""
        return (
            self._components.scheduler.is_up(BASE)
            and not self.draining
            and not self.not_ready_reason
        )

    @property
    def not_ready_reason(self) -> str:
        """Why calls cannot be served here for now, although all is up; or nothing."""
        return self._components.gpus.not_ready_reason

    def check_gpus(self, asked: int | None) -> None:
        """Refuse what asks for more GPUs than there are.

        Raises:
            InvalidRequest: it does.
            Overloaded: there should be some, and they cannot be listed for now.
        """
        self._components.gpus.number(asked)

    @property
    def slots(self) -> int:
        """Calls of the usual kind that can run at once."""
        gpus = self._components.gpus
        return gpus.calls if gpus.per_call else self.config.slots

    @property
    def free_slots(self) -> int:
        """Calls of the usual kind that could begin now, were their zygotes up."""
        components = self._components
        if components.gpus.per_call:
            return components.gpus.free_calls(components.residents.pressure.idle_gpus)
        return max(0, self.config.slots - components.scheduler.busy)

    def stats(self) -> PoolStats:
        """The pool as it is now."""
        return stats_snapshot.of_pool(self._components, ready=self.ready, draining=self.draining)

    # Environments.

    def add_environment(
        self, name: str, python: str, preload: Iterable[str] = (), entries: Iterable[str] = ()
    ) -> None:
        """Calls may name this environment from now on, until `on_unused` is told of it.

        A call must be submitted in the same turn of the loop, or the environment may be
        unused before it is used. ``preload``: what its calls imported at another time;
        ``entries``: the packages that their sources named.
        """
        self._environments.add(name, python, preload, entries)

    def unprovided(self, label: str, error: FlashpoolError) -> None:
        """Count the end of a call that never came here: it got no environment.

        What was refused as it stood was no call.
        """
        if isinstance(error, CallError):
            self._components.recorder.unprovided(label, error)

    def retire_idle(self, name: str) -> bool:
        """Let an environment's processes go, unless a call uses it: then False."""
        return self._environments.retire_idle(name)

    # Calls.

    def submit(self, call: Call, sink: Sink) -> int:
        """Take a call; its sink hears of it from now on. Returns its id.

        Raises:
            Overloaded: the queue is full, or the pool drains.
            InstanceConflict, InstanceLost: the instance it is for is another, or no more.
            InvalidRequest: it asks for more GPUs than there are.
            PoolClosed: the pool is shut down.
        """
        if self._components.closed:
            raise PoolClosed("the pool is shut down")
        if self._refusing:
            raise Overloaded(
                "the server is draining and takes no more calls; send it to another worker",
                retry_after_s=1,
            )
        components, gpus = self._components, 0
        if call.gpus or components.gpus.watch.expected or self.config.gpus_per_call:
            gpus = components.gpus.number(call.gpus)
        # Where nothing is known of an environment's calls, they go to its lean zygote.
        environment = call.provision.environment
        known = environment in components.learner.known
        key = components.learner.route(call) if known else ZygoteKey(environment)
        running = components.calls.accept(call, sink, key)
        try:
            self._enqueue(running, gpus)
        except FlashpoolError:
            components.calls.refuse(running.id)
            raise
        except QueueFull:
            components.calls.refuse(running.id, full=True)
            limit = self.config.queue_limit
            waiting = "1 call waits" if limit == 1 else f"{limit} calls wait"
            raise Overloaded(
                f"the queue is full: {waiting} already; "
                "send it again later, or raise FLASHPOOL_QUEUE_LIMIT",
                retry_after_s=1,
            ) from None
        self._actions.codec = call.codec
        return running.id

    def _enqueue(self, running: ActiveCall, gpus: int) -> None:
        components, residents = self._components, self._components.residents
        running.gpus_wanted = gpus
        beside = residents.table.waiting
        if beside:
            # Those that have a load in the scheduler's queue are counted there.
            beside -= len(residents.loading)
        if running.call.want is not None:
            components.scheduler.check_room(gpus, beside)
            residents.submit(running.id)
            return
        submitted = components.scheduler.submitted(
            running.id, running.key, components.now(), gpus=gpus, beside=beside
        )
        self._actions.do(submitted)
        if running.worker is None:
            components.calls.waits(running.id)

    def cancel(self, call_id: int, reason: str = "cancelled") -> None:
        """End a call; its sink hears of it at once, its process tree goes meanwhile."""
        self._components.calls.cancel(call_id, reason)

    def credit(self, call_id: int, items: int) -> None:
        """The sink took that many items of a stream: the worker may send as many more."""
        running = self._components.calls.get(call_id)
        if running is None or running.worker is None:
            return
        running.room += items
        if running.call.want is not None:
            self._components.residents.credit(call_id, running.worker, items)
        else:
            self._components.worker_set.credit(running.worker, items)

    def release(self, instance: str, reason: str) -> None:
        """Close an instance when its calls are over."""
        self._components.residents.release(instance, reason)


def _nobody(*_told: object) -> None:
    """Nobody has asked to be told."""
