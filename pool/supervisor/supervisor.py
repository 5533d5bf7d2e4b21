"""The supervisor: sole owner of the pool's state. It starts, watches and stops.

    submit, cancel --> Accepted -- events --> Scheduler
    sinks <-- outcomes --'  ^                     | commands
                            |                     v
                         Reports <-- Fleet (zygotes), Crew (workers) <-- Actions
                                            over one Poller

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
from flashpool.pool.workers.worker_set import STOP_MARGIN_S

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
        self._parts = parts = Components(config)
        self._change = ChangeSignal()
        self._actions = CommandRunner(parts, self._change)
        self._environments = EnvironmentRegistry(parts, self._actions, self)
        self._reports = ProcessEvents(parts, self._actions, self._environments)
        self._actions.on_not_started = self._reports.zygote_lost

    # Life.

    async def start(self) -> None:
        """Begin; the base zygote starts in the background."""
        self._parts.gpus.watch.on_change = self._gpus_changed
        await self._parts.open(
            listener=self._reports, host=self._actions, call_ended=self._call_ended
        )
        self._ticked_at = self._parts.now()
        self._ticking = self._parts.loop.call_later(TICK_S, self._tick)
        self._actions.want(BASE)

    def _tick(self) -> None:
        """Once a second: what is late, idle or forgotten."""
        parts = self._parts
        self._ticking = parts.loop.call_later(TICK_S, self._tick)
        now, before = parts.now(), self._ticked_at
        self._ticked_at = now
        self._actions.do(parts.scheduler.tick(parts.now()))
        self._environments.forget_unused()
        parts.residency.tick()
        if now - before > HELD_UP_S:
            # It was we who stood still, and perhaps they did too, as in a paused container:
            # nobody is to blame for what has not come about meanwhile.
            parts.fleet.resumed()
        else:
            parts.crew.check()
            parts.fleet.check()
        if BASE not in parts.fleet:
            # Without it no probe says "ready", and so no call comes that would start it.
            self._actions.want(BASE)
        if not parts.calls:
            # With nothing running, a kill that the kernel counted was of nobody of ours.
            parts.oom.rose()

    def _gpus_changed(self) -> None:
        parts = self._parts
        if not parts.closed:
            self._actions.do(parts.scheduler.gpus_changed(parts.now()))

    def _call_ended(self) -> None:
        if self._parts.gpus.table.waiting:
            # It may have been the first in line, and what was kept for it is for others now.
            self._parts.loop.call_soon(self._gpus_changed)
        if self.draining:
            self._change.tell()

    async def wait_ready(self) -> None:
        """Until the base zygote is up.

        Raises:
            EnvironmentStartFailed: it did not come up.
            PoolClosed: the pool was stopped meanwhile.
        """
        fleet = self._parts.fleet
        while not self._parts.scheduler.is_up(BASE):
            if self._parts.closed:
                raise PoolClosed("the pool is shut down")
            failure = fleet.failures.get(BASE)
            if failure is not None and BASE not in fleet:
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
        now, calls = self._parts.now, self._parts.calls
        deadline = now() + limit_s
        if first is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(first, limit_s)
        self._refusing = True
        while calls and now() < deadline:
            await self._change.wait(deadline - now())
        await self._close_instances("the server drains")
        return not calls

    async def _close_instances(self, reason: str) -> None:
        """Let instances close themselves, those that nobody calls."""
        now, residency = self._parts.now, self._parts.residency
        residency.close_idle(reason)
        deadline = now() + self.config.grace_s
        while residency.any_closing and now() < deadline:
            await self._change.wait(deadline - now())

    async def _let_end(self) -> None:
        """Give what was asked to end the grace: calls' processes, and instances."""
        parts = self._parts
        deadline = parts.now() + self.config.grace_s
        while parts.residency.any_left or any(worker.stopping for worker in parts.crew):
            left = deadline - parts.now()
            if left <= 0:
                return
            await self._change.wait(left)

    async def stop(self, reason: str = "the pool is shut down") -> None:
        """End every call as cancelled and every process; returns when all is gone.

        Who runs is asked to end (SIGTERM) and has the grace for that.
        """
        parts = self._parts
        if parts.closed:
            return
        self.draining = self._refusing = parts.closed = True
        parts.calls.cancel_all(reason)
        parts.residency.release_all(reason)
        await self._let_end()
        parts.fleet.retire_all()
        deadline = parts.now() + STOP_MARGIN_S
        while not parts.fleet.all_left:
            if parts.now() > deadline:
                parts.fleet.kill_leaving()
            await self._change.wait(0.5)
        self._ticking.cancel()
        await parts.close()

    # What it has room for.

    @property
    def ready(self) -> bool:
        """Whether a call would find its zygote up, and a GPU that may be used if it needs one."""
        return self._parts.scheduler.is_up(BASE) and not self.draining and not self.unfit

    @property
    def unfit(self) -> str:
        """Why calls cannot be served here for now, although all is up; or nothing."""
        return self._parts.gpus.unfit

    def check_gpus(self, asked: int | None) -> None:
        """Refuse what asks for more GPUs than there are.

        Raises:
            InvalidRequest: it does.
            Overloaded: there should be some, and they cannot be listed for now.
        """
        self._parts.gpus.number(asked)

    @property
    def slots(self) -> int:
        """Calls of the usual kind that can run at once."""
        gpus = self._parts.gpus
        return gpus.calls if gpus.per_call else self.config.slots

    @property
    def free_slots(self) -> int:
        """Calls of the usual kind that could begin now, were their zygotes up."""
        parts = self._parts
        if parts.gpus.per_call:
            return parts.gpus.free_calls(parts.residency.room.idle_gpus)
        return max(0, self.config.slots - parts.scheduler.busy)

    def stats(self) -> PoolStats:
        """The pool as it is now."""
        return stats_snapshot.of_pool(self._parts, ready=self.ready, draining=self.draining)

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
            self._parts.recorder.unprovided(label, error)

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
        if self._parts.closed:
            raise PoolClosed("the pool is shut down")
        if self._refusing:
            raise Overloaded(
                "the server is draining and takes no more calls; send it to another worker",
                retry_after_s=1,
            )
        gpus = self._parts.gpus.number(call.gpus)
        key = self._actions.route(call)
        call_id = self._parts.calls.accept(call, sink, key)
        try:
            self._enqueue(call_id, key, gpus)
        except FlashpoolError:
            self._parts.calls.refuse(call_id)
            raise
        except QueueFull:
            self._parts.calls.refuse(call_id, full=True)
            limit = self.config.queue_limit
            waiting = "1 call waits" if limit == 1 else f"{limit} calls wait"
            raise Overloaded(
                f"the queue is full: {waiting} already; "
                "send it again later, or raise FLASHPOOL_QUEUE_LIMIT",
                retry_after_s=1,
            ) from None
        self._actions.codec = call.codec
        return call_id

    def _enqueue(self, call_id: int, key: ZygoteKey, gpus: int) -> None:
        parts = self._parts
        running = parts.calls[call_id]
        running.gpus_wanted = gpus
        beside = parts.residency.table.waiting - parts.residency.loads_waiting
        if running.call.want is not None:
            parts.scheduler.check_room(gpus, beside)
            parts.residency.submit(call_id)
            return
        submitted = parts.scheduler.submitted(call_id, key, parts.now(), gpus=gpus, beside=beside)
        self._actions.do(submitted)
        parts.calls.waits(call_id)

    def cancel(self, call_id: int, reason: str = "cancelled") -> None:
        """End a call; its sink hears of it at once, its process tree goes meanwhile."""
        self._parts.calls.cancel(call_id, reason)

    def credit(self, call_id: int, items: int) -> None:
        """The sink took that many items of a stream: the worker may send as many more."""
        running = self._parts.calls.get(call_id)
        if running is None or running.worker is None:
            return
        running.room += items
        if running.call.want is not None:
            self._parts.residency.credit(call_id, running.worker, items)
        else:
            self._parts.crew.credit(running.worker, items)

    def release(self, instance: str, reason: str) -> None:
        """Close an instance when its calls are over."""
        self._parts.residency.release(instance, reason)


def _nobody(*_told: object) -> None:
    """Nobody has asked to be told."""
