"""Reads the pool's parts into one `PoolStats`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from flashpool.pool._child import processes
from flashpool.pool.residents.runner import ResidentRunner
from flashpool.pool.residents.states import Instance
from flashpool.pool.scheduling.wait_queue import Wait
from flashpool.pool.stats import (
    CallStats,
    InstanceStats,
    PoolStats,
    QueueStats,
    SlotStats,
    StuckStats,
    WaitStats,
    ZygoteStats,
)
from flashpool.pool.workers.ends import stuck
from flashpool.pool.workers.worker import ActiveCall, StuckWorker, Worker
from flashpool.pool.workers.zygote import ZygoteProcess

from .components import Components

if TYPE_CHECKING:
    from .provisioning import Provisioning

#: Most calls, and most modules, that are listed.
_CALLS: Final = 1000
_MODULES: Final = 100


def of_pool(
    components: Components, provisioning: Provisioning | None, *, ready: bool, draining: bool
) -> PoolStats:
    """Return the statistics of the pool."""
    scheduler, residents, recorder = components.scheduler, components.residents, components.recorder
    now = components.now()
    return PoolStats(
        ready=ready,
        unfit=components.gpus.not_ready_reason or None,
        draining=draining,
        slots=SlotStats(total=components.config.slots, busy=scheduler.busy),
        queue=_queue(components, provisioning, now),
        shortages=components.shortages.stats(),
        gpus=components.gpus.stats(),
        zygotes=[_zygote(one, components) for one in components.zygote_set],
        running=[_call(one, now) for one in itertools.islice(_begun(components), _CALLS)],
        instances=[
            _instance(one, residents, now) for one in itertools.islice(residents.table, _CALLS)
        ],
        apps=components.apps.stats(),
        stuck=_stuck(components),
        calls=recorder.calls,
        outcomes=dict(recorder.outcomes),
        latency=recorder.latency(),
        last_hour=recorder.last_hour(),
        environment_origins=dict(recorder.origins),
        recent_failures=recorder.failures(),
        exits=recorder.exits(len(components.exits)),
        supervisor=recorder.supervisor(),
        stores=[] if provisioning is None else provisioning.stores(),
    )


def _queue(components: Components, provisioning: Provisioning | None, now: float) -> QueueStats:
    scheduler, table = components.scheduler, components.residents.table
    refused = components.recorder.refused
    waits = scheduler.waits()
    waits["instance"] = [
        Wait(len(one.waiting), next(iter(one.waiting.values())).since)
        for one in table
        if one.waiting
    ]
    phases = {}
    for phase, found in waits.items():
        since = min((one.since for one in found), default=None)
        depth = sum(one.number for one in found)
        if phase == "instance":
            # The first call for an instance that is to be created waits as the worker that creates
            # it.
            depth -= len(components.residents.loading)
        phases[phase] = _wait(depth, None if since is None else now - since, refused[phase])
    ages = [one.oldest_age_s for one in phases.values() if one.oldest_age_s is not None]
    in_pool = sum(one.depth for one in phases.values())
    unprovided, age = 0, None
    if provisioning is not None:
        unprovided, age = len(provisioning), provisioning.oldest_age_s
    phases["environment"] = _wait(unprovided, age, refused["environment"])
    return QueueStats(
        depth=in_pool,
        limit=components.config.queue_limit,
        oldest_age_s=max(ages, default=None),
        refused=sum(refused.values()),
        by_phase=phases,
    )


def _wait(depth: int, age_s: float | None, refused: int) -> WaitStats:
    if depth <= 0:
        return WaitStats(depth=0, oldest_age_s=None, refused=refused)
    return WaitStats(
        depth=depth, oldest_age_s=None if age_s is None else round(age_s, 3), refused=refused
    )


def _begun(components: Components) -> Iterator[ActiveCall]:
    """Yield calls that have not ended, and those that have answered and still exit."""
    yield from components.calls.by_id.values()
    yield from (one.running for one in components.exits if one.running.done)


def _call(running: ActiveCall, now: float) -> CallStats:
    return CallStats(
        id=running.id,
        label=running.call.label,
        age_s=round(now - running.submitted_at, 3),
        phase=running.phase.value,
        pid=running.worker.pid if running.worker else None,
        environment=running.call.environment,
        gpus=list(running.gpus),
    )


def _instance(instance: Instance, residents: ResidentRunner, now: float) -> InstanceStats:
    worker = residents.worker_of(instance)
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
        gpus=list(residents.gpus_of(instance)),
        gpu_memory_mb=round(instance.gpu_bytes / (1 << 20), 1),
    )


def _stuck(components: Components) -> list[StuckStats]:
    known = {worker.pid for worker in components.worker_set}
    return [
        _stuck_worker(worker, one, known, components)
        for worker in components.worker_set
        if (one := worker.stuck) is not None
    ]


def _stuck_worker(
    worker: Worker, one: StuckWorker, known: set[int], components: Components
) -> StuckStats:
    pids = stuck.process_ids(worker, known)
    return StuckStats(
        worker=worker.pid,
        pids=pids,
        state=processes.state(pids[0]) if pids else "",
        waits_for=stuck.waits_for(pids[0]) if pids else "",
        call=one.call,
        label=one.label,
        since_s=round(components.now() - one.since, 3),
        environment=worker.zygote.key.environment,
        gpus=list(components.scheduler.gpus_of(worker.id)),
    )


def _zygote(zygote: ZygoteProcess, components: Components) -> ZygoteStats:
    key, zygote_set = zygote.key, components.zygote_set
    ready_at = zygote.ready_at
    return ZygoteStats(
        environment=key.environment,
        profile=key.profile,
        pid=zygote.pid,
        state=zygote.state.now.value,
        python=zygote.version,
        start_method=zygote.method,
        reason=zygote_set.history.spawned.get(key.environment),
        start_s=None if ready_at is None else round(ready_at - zygote.started_at, 4),
        memory_tricks=list(zygote.memory_tricks),
        preloaded=len(zygote.preload) - len(zygote.skipped),
        preload=list(zygote.preload[:_MODULES]),
        skipped={**zygote.skipped, **components.learner.denied(key.environment)},
        spares=components.scheduler.spares(key),
        workers=len(components.worker_set.of(zygote)),
        starts=zygote_set.history.starts.get(key, 0),
        last_failure=zygote_set.history.failures.get(key) or zygote_set.history.losses.get(key),
    )
