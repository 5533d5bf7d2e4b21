"""The supervisor: sole owner of the pool's state. It starts, watches and stops processes.

    submit -- names packages --> Provisioning -- the environment is ready --> submit
    submit, cancel --> CallTable -- events --> Scheduler
    sinks <-- outcomes ---'  ^                     | commands
                             |                     v
                       ProcessEvents          CommandRunner
                             ^                     |
                             '-- ZygoteSet, WorkerSet (over one Poller)

The supervisor runs in one thread, on an asyncio loop that it shares with the front-end. It never
runs, unpickles or reads what a user sent: bytes go from the front-end to a worker and back. This
class has the interface for other modules, and the supervisor's life cycle: `start`, a tick each
second, `drain`, `stop`.
"""

from __future__ import annotations

import asyncio
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flashpool.pool.apps import App, AppService
from flashpool.pool.calls import Call, Sink
from flashpool.pool.config import PoolConfig
from flashpool.pool.errors import (
    EnvironmentStartFailed,
    FlashpoolError,
    Overloaded,
    PoolClosed,
)
from flashpool.pool.scheduling.commands import QueueFull, ZygoteKey
from flashpool.pool.stats import PoolStats
from flashpool.pool.workers.ends.watchdog import STOP_MARGIN_S
from flashpool.pool.workers.worker import ActiveCall

from . import stats_snapshot
from .app_environments import AppEnvironments
from .call_watch import CallWatch
from .command_runner import CommandRunner
from .components import BASE, ChangeSignal, Components
from .environment_registry import EnvironmentRegistry
from .process_events import ProcessEvents
from .ticking import Ticking

if TYPE_CHECKING:
    from flashpool.envs import EnvSettings, Spec

    from .provisioning import Provisioning


class Supervisor:
    """The `Backend` of this machine: runs calls in forked workers.

    All methods run on the loop's thread.
    """

    #: Workers are on this machine.
    shares_descriptors: Final = True

    def __init__(self, config: PoolConfig, environments: EnvSettings | None = None) -> None:
        """``environments``: the store of calls' environments; None: as the variables say."""
        self.config = config
        self.draining = False
        #: Whether the drain is final, because `stop` follows.
        self._leaving = False
        self._components = components = Components(config)
        self._change = ChangeSignal()
        #: When processes that were asked to exit get SIGKILL, once the pool stops.
        self._exit_by = math.inf
        self._stopped = asyncio.Event()
        self._actions = CommandRunner(components, self._change)
        self.environments = EnvironmentRegistry(components, self._actions)
        self._ticking = Ticking(components, self._actions, self.environments)
        self._env_settings = environments
        #: Created by the first call, or app, that names packages.
        self._provisioning: Provisioning | None = None
        self._app_environments = AppEnvironments(
            self.environments, config.base_python, self._open_provisioning
        )
        self._reports = ProcessEvents(components, self._actions, self.environments)
        self.watching = CallWatch(components, lambda: self._provisioning, self._open_provisioning)

    # Life cycle.

    async def start(self) -> None:
        """Start; the base zygote starts in the background."""
        self._components.gpus.watch.on_change = self._gpus_changed
        await self._components.open(
            listener=self._reports, host=self._actions, call_ended=self._call_ended
        )
        self._ticking.start()
        self._actions.want(BASE)

    def _gpus_changed(self) -> None:
        components = self._components
        if not components.closed:
            self._actions.do(components.scheduler.gpus_changed(components.now()))

    def _call_ended(self) -> None:
        if self._components.gpus.table.waiting:
            # The call may have been first in the queue: GPUs reserved for it are free for others.
            self._components.loop.call_soon(self._gpus_changed)
        if self.draining:
            self._change.tell()

    async def wait_ready(self) -> None:
        """Wait until the base zygote is ready.

        Raises:
            EnvironmentStartFailed: the base zygote did not start.
            PoolClosed: the pool was stopped meanwhile.
        """
        zygote_set = self._components.zygote_set
        while not self._components.scheduler.is_up(BASE):
            if self._components.closed:
                raise PoolClosed("the pool is shut down")
            failure = zygote_set.history.failures.get(BASE)
            if failure is not None and BASE not in zygote_set:
                python = self.config.base_python
                what = f"the base interpreter {python} did not start: {failure}"
                raise EnvironmentStartFailed(what)
            await self._change.wait()

    def take_calls(self, taking: bool) -> bool:
        """Refuse new calls, or accept them again; return False if a final drain has begun."""
        if not self._leaving:
            self.draining = not taking
        return not self._leaving

    async def drain(self, limit_s: float) -> bool:
        """Refuse new calls; return whether everything accepted has finished within the limit.

        That includes calls whose environments are being built, calls whose processes still exit,
        and environments that are not yet available to other machines.
        """
        self.draining = True
        now, calls = self._components.now, self._components.calls
        deadline = now() + limit_s
        self._leaving = calls.awaited = True
        self._components.apps.drain()
        while self.unfinished and now() < deadline:
            await self._change.wait(deadline - now())
        published = True
        if self._provisioning is not None:
            # Otherwise every other machine would build again what was just built here.
            published = await self._provisioning.published(deadline - now())
        await self._close_residents("the server drains")
        return published and not self.unfinished

    async def _close_residents(self, reason: str) -> None:
        """Let idle instances and apps close themselves."""
        now, residents = self._components.now, self._components.residents
        apps = self._components.apps
        residents.close_idle(reason)
        apps.close_idle()
        deadline = now() + self.config.grace_s
        while (residents.any_closing or apps.any_closing) and now() < deadline:
            await self._change.wait(deadline - now())

    async def _wait_for_exits(self) -> None:
        """Wait within the grace period for processes that were asked to exit, and for instances."""
        components = self._components
        while (
            components.residents.any_remaining
            or components.apps.any_remaining
            or any(worker.stopping for worker in components.worker_set)
        ):
            left = self._exit_by - components.now()
            if left <= 0:
                return
            await self._change.wait(left)

    async def stop(
        self, reason: str = "the pool is shut down", *, grace_s: float | None = None
    ) -> None:
        """Cancel every call and stop every process; return when all processes are gone.

        Running calls get SIGTERM, and have the grace period to exit. With a ``grace_s`` of 0 they
        are killed at once. A second `stop` can shorten the grace period of the first.
        """
        components = self._components
        if grace_s is None:
            grace_s = self.config.grace_s
        self._exit_by = min(self._exit_by, components.now() + grace_s)
        if components.closed:
            self._change.tell()
            await self._stopped.wait()
            return
        self.draining = self._leaving = components.closed = True
        self._change.tell()
        try:
            await self._stop(reason, grace_s)
        finally:
            self._stopped.set()

    async def _stop(self, reason: str, grace_s: float) -> None:
        components = self._components
        components.exits.stop_all(reason)
        components.calls.cancel_all(reason, grace_s)
        if self._provisioning is not None:
            self._provisioning.refuse_all()
        components.residents.release_all(reason)
        components.apps.finish_all()
        components.apps.close_all()
        await self._wait_for_exits()
        components.zygote_set.retire_all()
        deadline = components.now() + STOP_MARGIN_S
        while not components.zygote_set.all_exited:
            if components.now() > deadline:
                components.zygote_set.kill_exiting()
            components.zygote_set.give_up_stuck()
            await self._change.wait(0.5)
        self._ticking.stop()
        await components.close()
        if self._provisioning is not None:
            # Not earlier: the processes that used the environments are gone now.
            await self._provisioning.close()

    # Capacity.

    @property
    def ready(self) -> bool:
        """Whether a call would find its zygote ready, and a usable GPU if it needs one."""
        return (
            self._components.scheduler.is_up(BASE)
            and not self.draining
            and not self.not_ready_reason
        )

    @property
    def not_ready_reason(self) -> str:
        """Why calls cannot be served for now although everything is up; otherwise empty."""
        return self._components.gpus.not_ready_reason

    @property
    def slots(self) -> int:
        """How many calls of the usual kind can run at once."""
        gpus = self._components.gpus
        return gpus.calls if gpus.per_call else self.config.slots

    @property
    def free_slots(self) -> int:
        """How many calls of the usual kind could begin now if their zygotes were up."""
        components = self._components
        if components.gpus.per_call:
            return components.gpus.free_calls(components.residents.pressure.idle_gpus)
        return max(0, self.config.slots - components.scheduler.busy)

    @property
    def unfinished(self) -> int:
        """How many calls a drain waits for.

        Their environments are being found or built, they wait or run, or they have answered and
        their processes still exit.
        """
        components, provisioning = self._components, self._provisioning
        found = len(provisioning) if provisioning is not None else 0
        # Exits of calls that have not answered are counted among the calls.
        answered = sum(one.running.done for one in components.exits)
        return found + len(components.calls) + answered + components.apps.busy

    def stats(self) -> PoolStats:
        """Return the current statistics."""
        return stats_snapshot.of_pool(
            self._components, self._provisioning, ready=self.ready, draining=self.draining
        )

    # Calls.

    def submit(self, call: Call, sink: Sink, call_id: int | None = None) -> int:
        """Accept a call and return its id; from now on its sink is notified.

        ``call_id``: the id of a call that was accepted before its environment was ready.

        Raises:
            Overloaded: the queue is full, or the pool drains.
            InstanceConflict, InstanceLost: the instance has another class or packages, or is gone.
            InvalidRequest: the call asks for more GPUs than there are.
            PoolClosed: the pool is shut down.
        """
        components = self._components
        if components.closed:
            raise PoolClosed("the pool is shut down")
        if self.draining and call_id is None:
            raise Overloaded(
                "the server is draining and accepts no new calls; send the call to another worker",
                retry_after_s=1,
            )
        components, gpus = self._components, 0
        if call.gpus or components.gpus.watch.expected or self.config.gpus_per_call:
            gpus = components.gpus.number(call.gpus)
        if call.spec is not None:
            return self._provide(call, call.spec, sink)
        # If nothing is known about an environment's calls, they go to its lean zygote.
        environment = call.provision.environment
        known = environment in components.learner.known
        key = components.learner.route(call) if known else ZygoteKey(environment)
        running = components.calls.accept(call, sink, key, call_id)
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
                "send the call again later, or raise FLASHPOOL_QUEUE_LIMIT",
                retry_after_s=1,
            ) from None
        self._actions.codec = call.codec
        return running.id

    def _provide(self, call: Call, spec: Spec, sink: Sink) -> int:
        """Find the environment first; the call comes back with the id that it gets here."""
        provisioning, call_id = self._open_provisioning(), self._components.calls.new_id()
        provisioning.add(call_id, call, spec, sink)
        return call_id

    def open_app(self, app: App) -> AppService:
        """Serve an app until the pool stops; raise `PoolClosed` if it has."""
        if self._components.closed:
            raise PoolClosed("the pool is shut down")
        return self._components.apps.open(app, self._app_environments.find)

    def _open_provisioning(self) -> Provisioning:
        if self._provisioning is None:  # a `Provisioning` without waiting calls is false
            self._provisioning = self._new_provisioning()
        return self._provisioning

    def _new_provisioning(self) -> Provisioning:
        # Imported late: most programs never name a package, and should not pay for the import.
        from flashpool.envs import EnvSettings

        from .environment_leases import StoredEnvironments
        from .provisioning import Provisioning

        settings = self._env_settings or EnvSettings.from_environ(os.environ)
        settings = replace(settings, base_python=Path(self.config.base_python))
        return Provisioning(
            StoredEnvironments(settings, self.environments),
            submit=self.submit,
            recorder=self._components.recorder,
            history=self._components.calls.history,
            queue_limit=self.config.queue_limit,
            settled=self._call_ended,
        )

    def _enqueue(self, running: ActiveCall, gpus: int) -> None:
        components, residents = self._components, self._components.residents
        running.gpus_wanted = gpus
        beside = residents.table.waiting
        if beside:
            # Instances that are being loaded are counted in the scheduler's queue.
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
        """Cancel a call; its sink is notified at once, while its process tree is being stopped."""
        provisioning = self._provisioning
        if provisioning is not None and provisioning.cancel(call_id, reason):
            return
        calls = self._components.calls
        running = calls.get(call_id)
        if running is not None and running.exiting:
            self._components.exits.answer_now(running)
        else:
            calls.cancel(call_id, reason)

    def credit(self, call_id: int, items: int) -> None:
        """Allow a stream's worker to send ``items`` more items: the sink has taken as many."""
        running = self._components.calls.get(call_id)
        if running is None or running.worker is None:
            return
        running.room += items
        if running.call.want is not None:
            self._components.residents.credit(call_id, running.worker, items)
        else:
            self._components.worker_set.credit(running.worker, items)

    def release(self, instance: str, reason: str) -> None:
        """Close an instance when its calls have finished."""
        self._components.residents.release(instance, reason)
