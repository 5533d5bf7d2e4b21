"""Carries out what the table of instances decides, and reports events to the table.

    Supervisor.submit --want--> InstanceTable.called --Load--> Scheduler --Dispatch--> LOAD
                                    ^    |                                              |
            LOADED, RESULT, death --'    '--Invoke--> CALL --> worker <-----------------'

To the scheduler, a load is a call with a number of its own, and a loaded instance is a worker that
releases its slot and asks for it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from flashpool.pool._child import wire
from flashpool.pool.calls import Call
from flashpool.pool.config import PoolConfig
from flashpool.pool.errors import InstanceConflict, InstanceLost
from flashpool.pool.exit_causes import Stop
from flashpool.pool.gpus.access import GpuAccess
from flashpool.pool.recorder import Recorder
from flashpool.pool.scheduling.preloading import PreloadLearner
from flashpool.pool.scheduling.scheduler import Scheduler
from flashpool.pool.workers.call_table import CallTable
from flashpool.pool.workers.channel import EXCEPTION_LIMIT
from flashpool.pool.workers.ends import outcomes
from flashpool.pool.workers.output_buffer import OutputBuffer
from flashpool.pool.workers.poller import Clock
from flashpool.pool.workers.scratch import ScratchDirectories
from flashpool.pool.workers.states import WorkerState
from flashpool.pool.workers.worker import ActiveCall, LoadedInstance, Worker
from flashpool.pool.workers.worker_set import WorkerSet

from . import states
from .events import Host, ResidentEvents
from .loading import ResidentLoads, call_meta
from .pressure import ResidentPressure
from .states import Conflict, Instance, InstanceState, NotThere
from .table import InstanceTable

_log = logging.getLogger(__name__)


class ResidentRunner:
    """All residents of a pool."""

    def __init__(
        self,
        config: PoolConfig,
        *,
        scheduler: Scheduler,
        learner: PreloadLearner,
        worker_set: WorkerSet,
        calls: CallTable,
        gpus: GpuAccess,
        now: Clock,
        host: Host,
        scratch: ScratchDirectories,
        recorder: Recorder,
    ) -> None:
        self._recorder = recorder
        self._config = config
        self._scheduler = scheduler
        self._worker_set = worker_set
        self._calls = calls
        self._gpus = gpus
        self._now = now
        self._host = host
        self._scratch = scratch
        self._loop = asyncio.get_running_loop()
        self.table = InstanceTable(
            states.ResidentPolicy(
                limit=config.instances,
                idle_s=config.instance_idle_s,
                memory_bytes=_bytes(config.instances_mb),
                gpu_bytes=_bytes(config.instances_gpu_mb),
            )
        )
        self._loaded: dict[str, LoadedInstance] = {}
        self.loading = ResidentLoads(
            self.table,
            self._loaded,
            scheduler=scheduler,
            learner=learner,
            worker_set=worker_set,
            calls=calls,
            gpus=gpus,
            now=now,
            host=host,
            to=self,
        )
        self._carry_out: dict[type[states.Command], Callable[[Any], None]] = {
            states.Load: self.loading.load,
            states.Abandon: self.loading.abandon,
            states.WantSlot: self._want_slot,
            states.KeepSlot: self._keep_slot,
            states.ReleaseSlot: self._release_slot,
            states.Invoke: self._invoke,
            states.Close: self._close,
            states.Refuse: self._refuse,
            states.Lose: self._lose,
        }
        self.events = ResidentEvents(self.table, self._loaded, calls, now, host=host, to=self)
        self.pressure = ResidentPressure(self.table, self._loaded, scheduler, gpus, now, self.do)

    # Calls.

    def submit(self, call_id: int) -> None:
        """Accept a call for an instance.

        Raises:
            InstanceConflict: a different instance of that name exists.
            InstanceLost: the call requires an existing instance, which is gone.
        """
        running = self._calls[call_id]
        running.keeper = self
        want = running.call.want
        assert want is not None
        try:
            commands = self.table.called(call_id, want, self._now())
        except Conflict:
            raise InstanceConflict(
                f"an instance {want.instance!r} with other code, packages or resources already "
                "exists. Use another instance_id, or replace the instance with "
                "create_new_instance: true",
                instance=want.instance,
            ) from None
        except NotThere as missing:
            raise InstanceLost(
                outcomes.instance_lost_words(want.instance, str(missing)),
                instance=want.instance,
                reason=str(missing),
            ) from None
        self.do(commands)
        if running.worker is None and not running.done:
            self.limit_waiting(call_id, running, self.table.get(want.instance))

    def withdraw(self, call_id: int, running: ActiveCall) -> None:
        """Withdraw a call; nothing happens if the call has begun."""
        want = running.call.want
        commands = self.table.withdrawn(call_id, self._now())
        if commands is None or want is None:
            return
        self.do(commands)
        instance = self.table.get(want.instance)
        if (
            instance is not None
            and instance.state is InstanceState.LOADING
            and not instance.waiting
        ):
            self.stop_worker(instance.name, None, None, "no call waited for it any more")

    def cancel(self, call_id: int, running: ActiveCall, reason: str) -> None:
        """Cancel a call that has begun; the supervisor notifies the caller."""
        worker = running.worker
        if worker is not None and worker.instance is not None and not worker.stopping:
            self._interrupt(call_id, worker, None, f"a call in it was cancelled: {reason}")

    def stop(self, call_id: int, running: ActiveCall, stop: Stop, *, grace: float) -> None:
        """Stop a call that exceeded a limit; ``stop`` becomes its error."""
        worker = running.worker
        if worker is None or worker.instance is None or running.stop is not None:
            return
        running.stop = stop
        if grace:
            self._interrupt(call_id, worker, stop, stop.message)
        else:
            self.stop_worker(worker.instance, call_id, stop, stop.message, grace=grace)

    def _interrupt(self, call_id: int, worker: Worker, stop: Stop | None, reason: str) -> None:
        """Cancel one of several calls; if that is impossible or in vain, stop the resident."""
        name = worker.instance
        assert name is not None
        instance = self.table.get(name)
        if instance is None or not instance.running.get(call_id):
            self.stop_worker(name, call_id, stop, reason)
            return
        self._worker_set.send(worker, wire.CANCEL, wire.numbered(call_id))

        def still_there(due: float) -> None:
            if call_id not in worker.calls or worker.stopping:
                return
            if (left := due - self._calls.beat()) > 0.0:
                # This process was suspended, and perhaps the instance was, too.
                self._loop.call_later(left, still_there, due)
                return
            ends = partial(self._worker_set.failed, worker)
            with self._recorder.counted(f"the grace of call {call_id}", ends):
                self.stop_worker(name, call_id, stop, reason, grace=0.0)

        grace_s = self._config.grace_s
        self._loop.call_later(grace_s, still_there, self._now() + grace_s)

    def credit(self, call_id: int, worker: Worker, items: int) -> None:
        """Let a call's generator yield that many more items."""
        meta = wire.numbered(call_id, wire.CREDIT_META.pack(items))
        self._worker_set.send(worker, wire.CREDIT, meta)

    # Decisions of the scheduler about calls; for loads, see `loading`.

    def granted(self, worker: Worker) -> None:
        """Handle a resident that has got the slot it asked for."""
        assert worker.instance is not None
        self.do(self.table.granted(worker.instance, self._now()))

    # Commands of the table.

    def do(self, commands: Iterable[states.Command]) -> None:
        """Carry out commands of the table."""
        for command in commands:
            self._carry_out[type(command)](command)

    def _want_slot(self, command: states.WantSlot) -> None:
        worker = self._loaded[command.instance].worker
        self._host.do(self._scheduler.wants_slot(worker.id, command.since, self._now()))

    def _release_slot(self, command: states.ReleaseSlot) -> None:
        worker = self._loaded[command.instance].worker
        self._host.do(self._scheduler.release_slot(worker.id, self._now()))

    def _refuse(self, command: states.Refuse) -> None:
        outcome = outcomes.instance_refused(command.instance, command.reason)
        self._calls.finish(command.call, outcome)

    def _lose(self, command: states.Lose) -> None:
        self._calls.finish(command.call, outcomes.instance_lost(command.instance, command.reason))

    def _keep_slot(self, command: states.KeepSlot) -> None:
        worker, now = self._loaded[command.instance].worker, self._now()
        if self._scheduler.may_go_on(worker.id):
            self.do(self.table.granted(command.instance, now))
            return
        self._host.do(self._scheduler.release_slot(worker.id, now))
        self._host.do(self._scheduler.wants_slot(worker.id, command.since, now))

    def _invoke(self, command: states.Invoke) -> None:
        call_id, loaded = command.call, self._loaded[command.instance]
        running = self._calls[call_id]
        worker, call = loaded.worker, running.call
        instance = self.table.get(command.instance)
        assert instance is not None
        loaded.used = True
        worker.calls[call_id] = running
        running.worker, running.dispatched_at = worker, self._now()
        running.gpus = loaded.gpus
        running.own_output = self._output_of(running, loaded)
        limit = running.limits.result_bytes
        if limit is not None:
            worker.link.reader.body_limit = limit + EXCEPTION_LIMIT
        overlaps = instance.running[call_id]
        # Calls that overlap share one process, and so one set of environment variables.
        env = None if call.trace is None or overlaps else call.trace.variables()
        meta = wire.numbered(call_id, call_meta(call, limit, env), overlaps=overlaps)
        self._worker_set.send(worker, wire.CALL, meta, call.body, call.fds)
        self._calls.handed_over(running)

    def _output_of(self, running: ActiveCall, loaded: LoadedInstance) -> OutputBuffer:
        """Return a buffer for a call's output; the first call's begins with the constructor's."""
        fresh = OutputBuffer(self._config.output_limit)
        if loaded.heard:
            return fresh
        loaded.heard = True
        written, loaded.worker.aside = loaded.worker.aside, fresh
        assert written is not None
        if written and running.sink.wants_output:
            for chunk, stderr in written.streams():
                running.sink.output(chunk, stderr=stderr)
        return written

    def _close(self, command: states.Close) -> None:
        """Ask an instance to close; `Watchdog.check` makes sure that its worker exits."""
        worker = self._loaded[command.instance].worker
        _log.info("The instance %s is closed: %s", command.instance, command.reason)
        worker.state.move(WorkerState.EXITING)
        worker.exiting_since = self._now()
        self._worker_set.send(worker, wire.CLOSE, b"")

    def stop_worker(
        self,
        name: str,
        culprit: int | None,
        stop: Stop | None,
        reason: str,
        *,
        grace: float | None = None,
    ) -> None:
        """Stop an instance's worker; ``culprit``: the call that is the reason, if any."""
        loaded = self._loaded[name]
        worker = loaded.worker
        self.table.closing(name, reason)
        worker.culprit = culprit
        grace_s = self._config.grace_s if grace is None else grace
        self._worker_set.stop(worker, stop, grace=grace_s, dump=stop is not None)

    # Time.

    def tick(self) -> None:
        """Close instances that are idle for too long, or use too much memory."""
        self.pressure.measure()
        self.do(self.table.tick(self._now()))

    def close_idle(self, reason: str) -> None:
        """Close all instances that are not needed now."""
        self.do(self.table.close_idle(reason))

    def release(self, name: str, reason: str) -> None:
        """Close an instance when its calls are over: its owner no longer needs it."""
        self.do(self.table.release(name, reason, self._now()))

    def release_all(self, reason: str) -> None:
        """Close all instances when their calls are over."""
        for instance in list(self.table):
            self.release(instance.name, reason)

    @property
    def any_remaining(self) -> bool:
        """Return whether any instance is left, even if it is closing."""
        return len(self.table) > 0

    @property
    def any_closing(self) -> bool:
        """Return whether a resident is closing."""
        return any(one.state is InstanceState.CLOSING for one in self.table)

    def gpus_of(self, instance: Instance) -> tuple[str, ...]:
        """Return the GPUs that an instance holds."""
        loaded = self._loaded.get(instance.name)
        return loaded.gpus if loaded is not None else ()

    def worker_of(self, instance: Instance) -> Worker | None:
        """Return an instance's worker, if it has one."""
        loaded = self._loaded.get(instance.name)
        return loaded.worker if loaded is not None else None

    # Parts.

    def variables(self, worker: Worker, call: Call, gpus: tuple[str, ...]) -> Mapping[str, str]:
        """Return the environment variables of an instance that this worker creates for the call.

        Raises:
            OSError: the scratch directory cannot be created.
        """
        env = self._gpus.variables(gpus, call.env)
        if not call.scratch:
            return env
        worker.scratch = self._scratch.make(worker.id)
        return self._scratch.variables(worker.scratch, env)

    def limit_waiting(self, call_id: int, running: ActiveCall, instance: Instance | None) -> None:
        """Limit how long a call may wait: while its instance is being created, by the limit for
        running; otherwise, by the limit for waiting.
        """
        if instance is not None and instance.state is InstanceState.LOADING:
            self._calls.limit(running, running.limits.run_s, self._load_too_long, call_id)
        else:
            self._calls.waits(call_id)

    def _load_too_long(self, call_id: int) -> None:
        running = self._calls[call_id]
        self._calls.finish(call_id, outcomes.loaded_too_long(running))


def _bytes(mebibytes: int | None) -> int | None:
    return None if mebibytes is None else mebibytes << 20
