"""The stats document as Prometheus metrics: the same figures, so that both always agree.

Labels are bounded: outcomes, phases, states, devices and places. No label holds a name that a user
chose.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client.core import (
    CollectorRegistry,
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from flashpool.frontends.telemetry.exemplars import Exemplars, Seen
from flashpool.pool.stats import LatencyStats, RouteStats

from .job_counts import JobsStats
from .stats_document import StatsDocument

_PREFIX: Final = "flashpool_"
_MIB: Final = 1 << 20


def render(
    stats: StatsDocument, accept: str, exemplars: Exemplars | None = None
) -> tuple[bytes, str]:
    """Return the text and its type, in the newest format that the reader accepts.

    ``exemplars``: the latest calls that have a trace. Only OpenMetrics shows them.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_OfDocument(stats, exemplars or Exemplars()))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _OfDocument(Collector):
    """Converts one stats document to families of metrics."""

    def __init__(self, stats: StatsDocument, exemplars: Exemplars) -> None:
        self._stats = stats
        self._exemplars = exemplars

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the registry need not search for names that collide."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield all families."""
        stats = self._stats
        yield from _server(stats)
        yield from _calls(stats, self._exemplars)
        yield from _processes(stats)
        yield from _gpus(stats)
        yield from _environments(stats)
        if stats.jobs is not None:
            yield from _jobs(stats.jobs)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(_PREFIX + name, text, value=value)


def _count(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(_PREFIX + name, text, value=value)


def _gauges(name: str, text: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    family = GaugeMetricFamily(_PREFIX + name, text, labels=[label])
    for key, value in values:
        family.add_metric([key], value)
    return family


def _counts(name: str, text: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    family = CounterMetricFamily(_PREFIX + name, text, labels=[label])
    for key, value in values:
        family.add_metric([key], value)
    return family


def _server(stats: StatsDocument) -> Iterator[Metric]:
    server, process = stats.server, stats.supervisor
    yield InfoMetricFamily(
        "flashpool",
        "What runs here.",
        value={
            "version": server.version,
            "mode": server.mode,
            "settings_digest": server.settings_digest,
        },
    )
    yield _gauge("start_time_seconds", "Start time in seconds since 1970.", server.started_at)
    yield _gauge("ready", "1 when calls start at once.", stats.ready)
    yield _gauge("draining", "1 when new calls are refused.", stats.draining)
    rss = process.rss_mb * 1e6
    yield _gauge("supervisor_resident_memory_bytes", "Resident memory of the server.", rss)
    yield _gauge("supervisor_open_fds", "Open descriptors of the server.", process.open_files)
    what = "Errors of flashpool itself; each ended one call, worker or zygote."
    yield _count("internal_errors", what, process.callback_errors)


def _calls(stats: StatsDocument, exemplars: Exemplars) -> Iterator[Metric]:
    queue = stats.queue
    yield _gauge("slots", "Calls that can run at once.", stats.slots.total)
    yield _gauge("slots_busy", "Slots in use.", stats.slots.busy)
    yield _gauge("queue_depth", "Calls that wait for a slot or a GPU.", queue.depth)
    if queue.limit is not None:
        yield _gauge("queue_limit", "Calls that may wait; further calls are refused.", queue.limit)
    oldest = queue.oldest_age_s or 0.0
    yield _gauge(
        "queue_oldest_age_seconds", "Seconds that the oldest waiting call has waited.", oldest
    )
    yield _count("queue_refused", "Calls refused because the queue was full.", queue.refused)
    depths = [(phase, one.depth) for phase, one in queue.by_phase.items()]
    yield _gauges("calls_waiting", "Calls that wait, by what they wait for.", "phase", depths)
    ages = [(phase, one.oldest_age_s or 0.0) for phase, one in queue.by_phase.items()]
    what = "How long the oldest call waits, by what calls wait for."
    yield _gauges("calls_waiting_oldest_age_seconds", what, "phase", ages)
    refused = [(phase, one.refused) for phase, one in queue.by_phase.items()]
    what = "Calls refused because too many waited, by what these waited for."
    yield _counts("calls_refused", what, "phase", refused)
    what = "Calls that ended, by outcome."
    yield _counts("calls", what, "outcome", stats.outcomes.items())
    family = HistogramMetricFamily(
        _PREFIX + "call_phase_seconds", "Seconds of calls in each phase.", labels=["phase"]
    )
    for phase, latency in stats.latency.items():
        buckets = enumerate(_buckets(latency))
        seen = [_with_exemplar(one, exemplars.get(phase, index)) for index, one in buckets]
        family.add_metric([phase], seen, latency.sum_s)
    yield family
    yield _gauge("exits_running", "Answered calls whose process still exits.", stats.exits.running)
    what = "Exits of calls in which something was stopped at the limit."
    yield _count("exits_ended", what, stats.exits.ended)


def _buckets(latency: LatencyStats) -> list[tuple[str, float]]:
    return [("+Inf" if one.le_s is None else str(one.le_s), one.count) for one in latency.buckets]


def _with_exemplar(
    bucket: tuple[str, float], seen: Seen | None
) -> tuple[str, float] | tuple[str, float, Exemplar]:
    if seen is None:
        return bucket
    return (*bucket, Exemplar({"trace_id": seen.trace_id}, seen.seconds, seen.at))


def _processes(stats: StatsDocument) -> Iterator[Metric]:
    zygotes, instances = stats.zygotes, stats.instances
    yield _gauges("zygotes", "Fork servers.", "state", _tally(one.state for one in zygotes))
    spawned = sum(one.start_method == "spawn" for one in zygotes)
    yield _gauge("zygotes_spawning", "Fork servers whose workers are spawned.", spawned)
    share = sum(one.pss_bytes or 0 for one in zygotes)
    yield _gauge(
        "zygotes_pss_bytes",
        "Memory of fork servers, with shared pages counted by their share.",
        share,
    )
    yield _gauge("spares", "Workers forked ahead of need.", sum(one.spares for one in zygotes))
    yield _gauge("workers", "Workers.", sum(one.workers for one in zygotes))
    what = "Class instances that live in workers."
    yield _gauges("instances", what, "state", _tally(one.state for one in instances))
    memory = sum(one.memory_mb for one in instances) * _MIB
    yield _gauge("instances_memory_bytes", "Memory of class instances.", memory)
    workers = [worker for app in stats.apps for worker in app.workers]
    what = "Workers of deployed apps."
    yield _gauges("app_workers", what, "state", _tally(one.state for one in workers))
    waiting = sum(app.waiting for app in stats.apps)
    yield _gauge("app_requests_waiting", "Requests that wait for an app's worker.", waiting)
    served = sum(one.served for one in workers)
    yield _gauge("app_requests_served", "Requests that the present workers have served.", served)
    deaths = sum(app.deaths for app in stats.apps)
    yield _count("app_worker_deaths", "Workers of apps that were lost.", deaths)
    yield from _routes([route for app in stats.apps for route in app.routes])
    yield _gauge("stuck_workers", "Killed workers that cannot be reaped.", len(stats.stuck))
    yield _gauge("shortages", "Resources that the machine lacks now.", len(stats.shortages))


def _routes(routes: list[RouteStats]) -> Iterator[Metric]:
    if not routes:
        return
    ended = CounterMetricFamily(
        _PREFIX + "route_requests",
        "Requests of a deployed app, by the template of their route and how they ended.",
        labels=["route", "status"],
    )
    seconds = HistogramMetricFamily(
        _PREFIX + "route_request_seconds",
        "Seconds of requests of a deployed app, to the last byte of the answer.",
        labels=["route"],
    )
    for one in routes:
        for status, count in one.requests.items():
            ended.add_metric([one.route, status], count)
        seconds.add_metric([one.route], _buckets(one.latency), one.latency.sum_s)
    yield ended
    yield seconds


def _gpus(stats: StatsDocument) -> Iterator[Metric]:
    gpus = stats.gpus
    yield _gauge("gpus_waiting_calls", "Calls that wait for GPUs.", gpus.waiting)
    yield _gauges("gpus", "GPUs.", "state", _tally(one.state for one in gpus.devices))
    used = [(one.uuid, one.used_bytes) for one in gpus.devices]
    yield _gauges("gpu_memory_used_bytes", "Memory in use when last read.", "gpu", used)
    total = [(one.uuid, one.memory_bytes or 0) for one in gpus.devices]
    yield _gauges("gpu_memory_bytes", "Memory of the device.", "gpu", total)
    calls = [(one.uuid, one.calls) for one in gpus.devices]
    yield _gauges("gpu_calls", "Calls on the device.", "gpu", calls)
    ill = [(one.uuid, one.state == "quarantined") for one in gpus.devices]
    what = "1 when the device is kept out of use, as its memory did not come back."
    yield _gauges("gpu_quarantined", what, "gpu", ill)
    # MIG devices of one GPU share its health.
    whole = {one.parent or one.uuid: one for one in gpus.devices}.items()
    load = [
        (uuid, one.utilization_percent / 100)
        for uuid, one in whole
        if one.utilization_percent is not None
    ]
    what = "Recent share of time in which the GPU computed."
    yield _gauges("gpu_utilization_ratio", what, "gpu", load)
    warm = [(uuid, one.temperature_c) for uuid, one in whole if one.temperature_c is not None]
    yield _gauges("gpu_temperature_celsius", "Temperature of the GPU.", "gpu", warm)
    ecc = CounterMetricFamily(
        _PREFIX + "gpu_ecc_errors",
        "ECC errors of the GPU since its driver was loaded.",
        labels=["gpu", "kind"],
    )
    for uuid, one in whole:
        for kind, count in (("corrected", one.ecc_corrected), ("uncorrected", one.ecc_uncorrected)):
            if count is not None:
                ecc.add_metric([uuid, kind], count)
    yield ecc
    xids = [(uuid, one.xid_errors) for uuid, one in whole]
    yield _counts("gpu_xid_errors", "Xid errors that the driver reported.", "gpu", xids)


def _environments(stats: StatsDocument) -> Iterator[Metric]:
    what = "Calls with packages, by origin of their environment."
    yield _counts("environment_lookups", what, "origin", stats.environment_origins.items())
    ages = [(one.root, one.heartbeat_age_s) for one in stats.stores]
    what = "Seconds since the last heartbeat, which keeps leases."
    yield _gauges("store_heartbeat_age_seconds", what, "store", ages)
    failures = [(one.root, one.failures) for one in stats.stores]
    yield _counts("store_failures", "Steps of the heartbeat that failed.", "store", failures)
    looked = [one for one in stats.stores if one.environments is not None]
    count = [(one.root, one.environments or 0) for one in looked]
    yield _gauges("environments", "Environments in the store.", "store", count)
    size = [(one.root, one.bytes or 0) for one in looked]
    yield _gauges("environments_bytes", "Bytes of the environments in the store.", "store", size)
    built = [(one.root, one.builds) for one in stats.stores]
    yield _counts("environment_builds", "Environments built by this server.", "store", built)
    failed = [(one.root, one.failed_builds) for one in stats.stores]
    what = "Environments that could not be resolved, fetched or built by this server."
    yield _counts("environment_builds_failed", what, "store", failed)
    evicted = [(one.root, one.evictions) for one in stats.stores]
    what = "Environments that this server deleted to free space, or because of their age."
    yield _counts("environment_evictions", what, "store", evicted)
    sound = [one for one in stats.storage if one.problem is None]
    free = [(one.place, one.free_bytes) for one in sound]
    yield _gauges("storage_free_bytes", "Free bytes of the disk.", "place", free)
    size = [(one.place, one.size_bytes) for one in sound]
    yield _gauges("storage_size_bytes", "Size of the disk.", "place", size)
    age = [(one.place, one.age_s) for one in stats.storage]
    what = "Seconds since the disk last answered; a growing age means that it hangs."
    yield _gauges("storage_age_seconds", what, "place", age)


def _jobs(jobs: JobsStats) -> Iterator[Metric]:
    yield _count("jobs_taken", "Jobs taken from the platform's queue.", jobs.taken)
    yield _gauge("jobs_running", "Jobs that have no report yet.", jobs.running)
    ends = [("done", jobs.done), ("failed", jobs.failed)]
    yield _counts("jobs", "Jobs with a report, by its result.", "result", ends)
    what = "Reports that the platform has not accepted yet."
    yield _gauge("job_reports_waiting", what, jobs.reports_waiting)


def _tally(states: Iterable[str]) -> list[tuple[str, float]]:
    return sorted(Counter(states).items())
