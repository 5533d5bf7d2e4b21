"""Reads the pool's parts into one `PoolStats`."""

from __future__ import annotations

import itertools
from typing import Final

from flashpool.pool.residents.runner import ResidentRunner
from flashpool.pool.residents.states import Instance
from flashpool.pool.stats import (
    CallStats,
    InstanceStats,
    PoolStats,
    QueueStats,
    SlotStats,
    ZygoteStats,
)
from flashpool.pool.workers.worker import ActiveCall
from flashpool.pool.workers.zygote import ZygoteProcess

from .components import Components

#: Calls and modules listed at most.
_CALLS: Final = 1000
_MODULES: Final = 100


def of_pool(parts: Components, *, ready: bool, draining: bool) -> PoolStats:
    """The pool as it is now."""
    scheduler, residency, recorder = parts.scheduler, parts.residency, parts.recorder
    now = parts.now()
    oldest = scheduler.waiting_since()
    return PoolStats(
        ready=ready,
        unfit=parts.gpus.unfit or None,
        draining=draining,
        slots=SlotStats(total=parts.config.slots, busy=scheduler.busy),
        queue=QueueStats(
            depth=scheduler.waiting + residency.table.waiting - residency.loads_waiting,
            limit=parts.config.queue_limit,
            oldest_age_s=None if oldest is None else round(now - oldest, 3),
            refused=recorder.refused,
        ),
        gpus=parts.gpus.stats(),
        zygotes=[_zygote(one, parts) for one in parts.fleet],
        running=[
            _call(call_id, running, now)
            for call_id, running in itertools.islice(parts.calls.by_id.items(), _CALLS)
        ],
        instances=[
            _instance(one, residency, now) for one in itertools.islice(residency.table, _CALLS)
        ],
        calls=recorder.calls,
        outcomes=dict(recorder.outcomes),
        latency=recorder.latency(),
        recent_failures=recorder.failures(),
        supervisor=recorder.supervisor(),
    )


def _call(call_id: int, running: ActiveCall, now: float) -> CallStats:
    return CallStats(
        id=call_id,
        label=running.call.label,
        age_s=round(now - running.submitted_at, 3),
        phase=running.phase.value,
        pid=running.worker.pid if running.worker else None,
        environment=running.call.environment,
        gpus=list(running.gpus),
    )


def _instance(instance: Instance, residency: ResidentRunner, now: float) -> InstanceStats:
    worker = residency.worker_of(instance)
    return InstanceStats(
        instance=instance.name,
        class_name=instance.want.class_name,
        state=instance.state.value,
        generation=instance.generation,
        pid=worker.pid if worker else None,
        environment=worker.zygote.key.environment if worker else None,
        calls=instance.calls,
        running=len(instance.running),
        waiting=len(instance.waiting),
        idle_s=round(now - instance.last_used, 3) if instance.idle else 0.0,
        memory_mb=round(instance.memory_bytes / (1 << 20), 1),
        gpus=list(residency.gpus_of(instance)),
        gpu_memory_mb=round(instance.gpu_bytes / (1 << 20), 1),
    )


def _zygote(zygote: ZygoteProcess, parts: Components) -> ZygoteStats:
    key, fleet = zygote.key, parts.fleet
    ready_at = zygote.ready_at
    return ZygoteStats(
        environment=key.environment,
        profile=key.profile,
        pid=zygote.pid,
        state=zygote.state.now.value,
        python=zygote.version,
        start_method=zygote.method,
        reason=fleet.spawned.get(key.environment),
        start_s=None if ready_at is None else round(ready_at - zygote.started_at, 4),
        preloaded=len(zygote.preload) - len(zygote.skipped),
        preload=list(zygote.preload[:_MODULES]),
        skipped={**zygote.skipped, **parts.learner.denied(key.environment)},
        spares=parts.scheduler.spares(key),
        workers=len(parts.crew.of(zygote)),
        starts=fleet.starts.get(key, 0),
        last_failure=fleet.failures.get(key) or fleet.losses.get(key),
    )
