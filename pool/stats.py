"""The statistics of a pool: one typed document, collected in the supervisor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotStats:
    """The slots of a pool."""

    total: int
    busy: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortageStats:
    """A resource that the machine is short of."""

    #: What needs the resource, such as ``zygote base#0``.
    who: str
    what: str
    for_s: float
    #: Number of failed attempts.
    times: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitStats:
    """Calls that wait for the same thing."""

    depth: int
    oldest_age_s: float | None
    #: Calls that were refused because too many waited already, since the start.
    refused: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStats:
    """Calls that wait."""

    depth: int
    limit: int | None
    oldest_age_s: float | None
    refused: int
    #: By what they wait for: ``environment`` (not in the depth above), ``start`` of an interpreter,
    #: ``slot``, ``gpu``, ``instance``.
    by_phase: dict[str, WaitStats] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuStats:
    """One GPU, or MIG device."""

    uuid: str
    index: int
    name: str
    parent: str | None
    #: ``free`` (calls may be on it), ``settling`` or ``quarantined``.
    state: str
    calls: int
    memory_bytes: int | None
    #: At the latest reading.
    used_bytes: int
    #: Bytes in use while no call was on the GPU.
    level_bytes: int | None
    #: Why it is quarantined, and for how long it has been.
    evidence: str | None
    quarantined_s: float | None
    #: At the latest reading, and for the whole GPU, as are the errors; None: the driver does not
    #: say.
    utilization_percent: int | None
    temperature_c: int | None
    #: Since the driver was loaded.
    ecc_corrected: int | None
    ecc_uncorrected: int | None
    #: Errors since the pool started, and the code of the latest.
    xid_errors: int
    last_xid: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpusStats:
    """The GPUs that calls may use."""

    total: int
    usable: int
    #: Calls that wait for GPUs.
    waiting: int
    driver: str
    #: Why there are no GPUs.
    reason: str | None
    devices: list[GpuStats]


@dataclass(frozen=True, slots=True, kw_only=True)
class ZygoteStats:
    """One zygote."""

    environment: str
    profile: int
    pid: int | None
    state: str
    python: str
    start_method: str
    #: Why workers are spawned and not forked, when they are.
    reason: str | None
    start_s: float | None
    #: The memory tricks in use: `PoolConfig.memory_tricks`, less those its Python or kernel
    #: refuses.
    memory_tricks: list[str]
    preloaded: int
    preload: list[str]
    skipped: dict[str, str]
    spares: int
    workers: int
    starts: int
    last_failure: str | None
    #: Proportional share of memory (PSS); only the admin listener measures it.
    pss_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStats:
    """One call that runs, or whose worker has not exited."""

    id: int
    label: str
    age_s: float
    phase: str
    pid: int | None
    environment: str
    gpus: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceStats:
    """One class instance."""

    instance: str
    class_name: str
    #: ``pending``, ``wanted``, ``loading``, ``ready`` or ``leaving``.
    state: str
    generation: int
    pid: int | None
    environment: str | None
    calls: int
    running: int
    waiting: int
    idle_s: float
    memory_mb: float
    #: The instance's GPUs, and its memory on them if `FLASHPOOL_INSTANCES_GPU_MB` is set.
    gpus: list[str]
    gpu_memory_mb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StuckStats:
    """A worker that was killed and has not exited, or its descendants; keeps its slot and GPUs."""

    worker: int
    #: The processes that cannot be killed, the kernel's letter for their state, and where in the
    #: kernel they wait.
    pids: list[int]
    state: str
    waits_for: str
    call: int | None
    #: Label of the call, or of its instance.
    label: str
    since_s: float
    environment: str
    gpus: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketStats:
    """How many values were at most ``le_s`` seconds; None: no upper bound."""

    le_s: float | None
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyStats:
    """Seconds of all calls in one phase since the start; percentiles are exact to their bucket."""

    count: int
    sum_s: float
    p50_s: float
    p90_s: float
    p95_s: float
    p99_s: float
    max_s: float
    buckets: list[BucketStats]


@dataclass(frozen=True, slots=True, kw_only=True)
class MinuteStats:
    """Calls that ended in one minute, which began ``at`` (seconds since 1970)."""

    at: float
    calls: int
    failed: int
    p50_s: float
    p95_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureStats:
    """A recent failure. ``cause`` is an outcome, ``last_lines`` the end of the call's output."""

    at: float
    call: int | None
    label: str
    cause: str
    error_type: str
    error: str
    last_lines: str
    run_s: float
    pid: int | None
    receipt: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedExitStats:
    """Something that a call had left at its exit, and that was stopped at the limit."""

    at: float
    call: int
    label: str
    what: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitStats:
    """Calls whose function has returned and whose process has not exited."""

    running: int
    #: How often something was stopped at the limit, and the latest cases of that.
    ended: int
    recent: list[EndedExitStats]


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorStats:
    """The supervisor's own process."""

    pid: int
    uptime_s: float
    rss_mb: float
    open_files: int
    #: Exceptions of flashpool's own callbacks, which are bugs; and the latest one.
    callback_errors: int
    last_callback_error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """One open store of environments, and the heartbeat that keeps this server's leases there."""

    root: str
    heartbeat_age_s: float
    #: Steps of the heartbeat's thread that failed since the start; and the problem that persists.
    failures: int
    problem: str | None
    #: Environments in the store, and their bytes, at the latest look; None before the first look.
    environments: int | None = None
    bytes: int | None = None
    #: Counted for this server, since it opened the store.
    builds: int = 0
    failed_builds: int = 0
    evictions: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AppWorkerStats:
    """One worker of a deployed app."""

    #: The worker's number among all that the app ever had: module state belongs to one generation.
    generation: int
    state: str
    pid: int | None
    #: Seconds since 1970; None while it loads.
    loaded_at: float | None
    requests: int
    served: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IsolatedStats:
    """Requests of an app that run in processes of their own."""

    waiting: int
    running: int
    served: int
    #: Seconds that the latest request's process took to load the app; null before the first.
    load_s: float | None
    #: Why loading took more than 0.1 s, if it did.
    slow_because: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighbourStats:
    """The addresses that an app has of the other resources of its project."""

    #: Number of known addresses.
    endpoints: int
    #: Seconds since the platform last answered; null: never.
    age_s: float | None
    #: Why the platform did not answer the latest query.
    failure: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteStats:
    """Requests of a deployed app for one of its routes, since the start."""

    #: Template of the route; ``(none)``: the app has no route for them, or was not loaded.
    route: str
    #: By status class, ``2xx`` and so on; ``left``: the client left before an answer; ``cut``: the
    #: answer broke off.
    requests: dict[str, int]
    #: Seconds until the last byte of the answer was passed on.
    latency: LatencyStats


@dataclass(frozen=True, slots=True, kw_only=True)
class AppStats:
    """One deployed app."""

    app: str
    state: str
    failure: str | None
    waiting: int
    workers: list[AppWorkerStats]
    deaths: int
    last_death: str | None
    #: Whether another app has replaced this one, which only finishes its requests.
    retiring: bool
    isolated: IsolatedStats
    #: A remark for operators, such as why the last reload changed nothing.
    note: str | None
    #: Where the other resources are served; null if the platform is not asked.
    neighbours: NeighbourStats | None
    #: The app's requests by route, including those of apps that it replaced.
    routes: list[RouteStats] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """All statistics of a pool."""

    ready: bool
    #: Why the pool is up but not ready.
    unfit: str | None
    draining: bool
    slots: SlotStats
    queue: QueueStats
    shortages: list[ShortageStats]
    gpus: GpusStats
    zygotes: list[ZygoteStats]
    running: list[CallStats]
    instances: list[InstanceStats]
    apps: list[AppStats]
    stuck: list[StuckStats]
    calls: int
    outcomes: dict[str, int]
    latency: dict[str, LatencyStats]
    #: Calls of the last hour by the minute, without empty minutes.
    last_hour: list[MinuteStats]
    #: How often environments came from where: ``memo``, ``disk``, ``built`` and so on.
    environment_origins: dict[str, int]
    recent_failures: list[FailureStats]
    exits: ExitStats
    supervisor: SupervisorStats
    stores: list[StoreStats] = field(default_factory=list)
