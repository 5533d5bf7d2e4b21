"""Creates instances: they wait in the scheduler's queue, like calls, then load in a worker.

Load --> a number of its own --> Scheduler --Dispatch--> LOAD --> (`events`)
Abandon -------------------------> withdrawn    '--Fail--> its calls fail
"""

from __future__ import annotations

from collections.abc import Mapping

from flashpool.pool._child import wire
from flashpool.pool.calls import Call, Codec, Outcome
from flashpool.pool.errors import FlashpoolError
from flashpool.pool.gpus.access import GpuAccess
from flashpool.pool.scheduling.commands import ZygoteKey
from flashpool.pool.scheduling.preloading import PreloadLearner
from flashpool.pool.scheduling.scheduler import Scheduler
from flashpool.pool.workers.call_table import CallTable
from flashpool.pool.workers.ends import outcomes
from flashpool.pool.workers.ends.memory import MemoryLimit
from flashpool.pool.workers.output_buffer import OutputBuffer, SplitBuffer
from flashpool.pool.workers.poller import Clock
from flashpool.pool.workers.states import WorkerState
from flashpool.pool.workers.worker import LoadedInstance, Worker
from flashpool.pool.workers.worker_set import WorkerSet

from . import states
from .events import Carrier, Host
from .table import InstanceTable


class ResidentLoads:
    """All instances of a pool that are being created."""

    def __init__(
        self,
        table: InstanceTable,
        loaded: dict[str, LoadedInstance],
        *,
        scheduler: Scheduler,
        learner: PreloadLearner,
        worker_set: WorkerSet,
        calls: CallTable,
        gpus: GpuAccess,
        now: Clock,
        host: Host,
        to: Carrier,
    ) -> None:
        self._table = table
        self._loaded = loaded
        self._scheduler = scheduler
        self._learner = learner
        self._worker_set = worker_set
        self._calls = calls
        self._gpus = gpus
        self._now = now
        self._host = host
        self._to = to
        #: Instances whose loads wait in the scheduler, by the number of the load.
        self._loads: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._loads)

    def load(self, command: states.Load) -> None:
        """Put a load into the scheduler's queue."""
        name = command.instance
        instance = self._table.get(name)
        assert instance is not None
        first = self._calls[next(iter(instance.waiting))]
        try:
            gpus = self._gpus.number(first.call.gpus)
        except FlashpoolError as error:
            # The GPUs existed when the calls were accepted.
            self._not_loaded(name, outcomes.refused(error))
            return
        load_id = self._calls.new_id()
        self._loads[load_id] = name
        key = self._learner.route(first.call)
        self._host.do(self._scheduler.submitted(load_id, key, self._now(), gpus=gpus, beside=None))

    def abandon(self, command: states.Abandon) -> None:
        """Withdraw a load from the scheduler's queue."""
        for load_id, loaded in list(self._loads.items()):
            if loaded == command.instance:
                del self._loads[load_id]
                self._scheduler.withdrawn(load_id)

    def dispatched(self, load_id: int, worker: Worker, gpus: tuple[str, ...]) -> None:
        """Load an instance in the worker that it got."""
        name = self._loads.pop(load_id)
        instance = self._table.get(name)
        assert instance is not None
        first = self._calls[self._table.loading(name)]
        call, want = first.call, instance.want
        try:
            env = self._to.variables(worker, call, gpus)
        except OSError as error:
            self._worker_set.dismiss(worker)
            self._not_loaded(name, outcomes.no_scratch(error))
            return
        self._loaded[name] = loaded = LoadedInstance(worker, gpus, first.limits.memory_mb)
        worker.state.move(WorkerState.BUSY)
        worker.instance = name
        kind = OutputBuffer if worker.link.errors is None else SplitBuffer
        worker.aside = kind(worker.link.output_limit)
        worker.loading, worker.fed_at = True, self._now()
        meta = call_meta(call, env=env)
        self._worker_set.send(
            worker, wire.LOAD, meta, call.body if want.load is None else want.load
        )
        for call_id in instance.waiting:
            self._to.limit_waiting(call_id, self._calls[call_id], instance)
        self._limit_memory(loaded)

    def _limit_memory(self, loaded: LoadedInstance) -> None:
        """Apply the memory limit of the first call to the constructor."""
        worker, limit_mb = loaded.worker, loaded.limit_mb
        if limit_mb is None:
            return

        def applies() -> bool:
            there = self._loaded.get(worker.instance or "") is loaded
            return there and worker.loading and not worker.stopping

        def exceeded(used_bytes: int) -> None:
            stop = outcomes.used_too_much(limit_mb, used_bytes)
            self._worker_set.stop(worker, stop, grace=0.0)

        limit = MemoryLimit(pid=worker.pid, limit_mb=limit_mb, applies=applies, exceeded=exceeded)
        self._calls.memory_watch.add(limit)

    def not_started(self, load_id: int, key: ZygoteKey, reason: str) -> None:
        """Fail a load: no worker is available."""
        name = self._loads.pop(load_id)
        self._not_loaded(name, outcomes.start_failed(key.environment, reason))

    def _not_loaded(self, name: str, outcome: Outcome) -> None:
        """Finish the calls of a load that no worker will begin."""
        reason = outcome.error or ""
        for call_id in self._table.not_loaded(name, reason):
            self._calls.finish(call_id, outcome)
        self._to.do(self._table.gone(name, reason, self._now()))


def call_meta(
    call: Call, result_limit: int | None = None, env: Mapping[str, str] | None = None
) -> bytes:
    """Pack the metadata with which a resident loads an instance or runs a call."""
    return wire.pack_call_meta(
        pickled=call.codec is Codec.PICKLE,
        stream=call.stream,
        result_limit=result_limit,
        env=dict(env or {}),
        seed=call.seed,
        soft_s=call.limits.soft_s,
    )
