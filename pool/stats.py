"""What an operator can ask of a pool: one typed document, collected in the supervisor.

Everything is bounded: the last so many latencies and failures, counters by cause.
"""

from __future__ import annotations

import os
import resource
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import Final

from .calls import Outcome, Receipt
from .errors import BY_NAME

#: Calls whose latency is remembered, and failures.
LATENCIES: Final = 2048
FAILURES: Final = 50
_ERROR_TEXT: Final = 300
#: In place of an end's name that is none of ours: user code wrote it to its worker's channel.
OTHER: Final = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotStats:
    """Units of concurrency."""

    total: int
    busy: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStats:
    """Calls that wait."""

    depth: int
    limit: int | None
    oldest_age_s: float | None
    refused: int


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
    #: At the latest look, which is never while all its shares are out.
    used_bytes: int
    #: What is in use without calls.
    level_bytes: int | None
    #: Why it is quarantined, and for how long it has been.
    evidence: str | None
    quarantined_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpusStats:
    """The GPUs calls may have."""

    total: int
    usable: int
    #: Calls that stand in line for some.
    waiting: int
    driver: str
    #: Why there are none.
    reason: str | None
    devices: list[GpuStats]


@dataclass(frozen=True, slots=True, kw_only=True)
class ZygoteStats:
    """One fork server."""

    environment: str
    profile: int
    pid: int | None
    state: str
    python: str
    start_method: str
    #: Why workers are spawned and not forked, when they are.
    reason: str | None
    start_s: float | None
    #: The ones it uses: `PoolConfig.memory_tricks`, less what its Python or the kernel refuses.
    memory_tricks: list[str]
    preloaded: int
    preload: list[str]
    skipped: dict[str, str]
    spares: int
    workers: int
    starts: int
    last_failure: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStats:
    """One call that runs or waits for its worker to go."""

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
    #: Its GPUs, and what it holds of their memory where `FLASHPOOL_INSTANCES_GPU_MB` is set.
    gpus: list[str]
    gpu_memory_mb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyStats:
    """Seconds of the last calls in one phase."""

    count: int
    p50_s: float
    p90_s: float
    p99_s: float
    max_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureStats:
    """One recent failure."""

    at: float
    label: str
    error_type: str
    error: str
    run_s: float
    pid: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedExitStats:
    """What a call had left to be done at its exit, and was ended."""

    at: float
    call: int
    label: str
    what: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitStats:
    """Calls whose function has returned and whose process still exits."""

    running: int
    #: How often something was ended at the limit, and the latest of it.
    ended: int
    recent: list[EndedExitStats]


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorStats:
    """The supervisor's own process."""

    pid: int
    uptime_s: float
    rss_mb: float
    open_files: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AppWorkerStats:
    """One worker of a deployed app."""

    #: Counts the workers that the app ever had: what a worker keeps is that of its generation.
    generation: int
    state: str
    pid: int | None
    #: Seconds since 1970; None while it loads.
    loaded_at: float | None
    requests: int
    served: int


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


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """The whole document."""

    ready: bool
    #: Why it is up and yet not ready.
    unfit: str | None
    draining: bool
    slots: SlotStats
    queue: QueueStats
    gpus: GpusStats
    zygotes: list[ZygoteStats]
    running: list[CallStats]
    instances: list[InstanceStats]
    apps: list[AppStats]
    calls: int
    outcomes: dict[str, int]
    latency: dict[str, LatencyStats]
    recent_failures: list[FailureStats]
    exits: ExitStats
    supervisor: SupervisorStats


class Recorder:
    """Counts ends; keeps the latest few."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.calls = 0
        self.refused = 0
        self.outcomes: Counter[str] = Counter()
        self._failures: deque[FailureStats] = deque(maxlen=FAILURES)
        self._receipts: deque[Receipt] = deque(maxlen=LATENCIES)
        self._exits_ended = 0
        self._exits: deque[EndedExitStats] = deque(maxlen=FAILURES)

    def ended(self, label: str, outcome: Outcome) -> None:
        """Record the end of a call."""
        self._receipts.append(outcome.receipt)
        if outcome.error_type is None:
            self.calls += 1
            self.outcomes["ok"] += 1
        else:
            self._failed(label, outcome, outcome.error_type)

    def unprovided(self, label: str, outcome: Outcome) -> None:
        """The same of one whose environment could not be had; it took none of the pool's time."""
        if outcome.error_type is not None:
            self._failed(label, outcome, outcome.error_type)

    def _failed(self, label: str, outcome: Outcome, error_type: str) -> None:
        known = error_type if error_type in BY_NAME else OTHER
        self.calls += 1
        self.outcomes["UserException" if outcome.from_user else known] += 1
        self._failures.append(
            FailureStats(
                at=time.time(),
                label=label,
                error_type=error_type[:_ERROR_TEXT],
                error=(outcome.error or "")[:_ERROR_TEXT],
                run_s=round(outcome.receipt.run_s, 6),
                pid=outcome.receipt.pid,
            )
        )

    def exit_ended(self, call_id: int, label: str, what: str, seconds: float) -> None:
        """Record what a call had left and was ended."""
        self._exits_ended += 1
        self._exits.append(
            EndedExitStats(
                at=time.time(), call=call_id, label=label, what=what, seconds=round(seconds, 3)
            )
        )

    def exits(self, running: int) -> ExitStats:
        """What was ended, newest last, and how many run."""
        return ExitStats(running=running, ended=self._exits_ended, recent=list(self._exits))

    def failures(self) -> list[FailureStats]:
        """The latest failures, newest last."""
        return list(self._failures)

    def latency(self) -> dict[str, LatencyStats]:
        """Percentiles by phase over the latest calls."""
        receipts = list(self._receipts)
        phases = {
            "queue": [one.queue_s for one in receipts],
            "start": [one.start_s for one in receipts],
            "run": [one.run_s for one in receipts],
            "exit": [one.exit_s for one in receipts],
            "total": [one.total_s for one in receipts],
        }
        return {phase: _percentiles(seconds) for phase, seconds in phases.items() if seconds}

    def supervisor(self) -> SupervisorStats:
        """This process, measured now."""
        return SupervisorStats(
            pid=os.getpid(),
            uptime_s=round(time.monotonic() - self.started, 3),
            rss_mb=round(_resident_bytes() / 1e6, 1),
            open_files=_open_files(),
        )


# Both without a descriptor to be had, too: stats are wanted most when something runs out.


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _open_files() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _percentiles(seconds: list[float]) -> LatencyStats:
    ordered = sorted(seconds)

    def at(fraction: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(fraction * len(ordered)))], 6)

    return LatencyStats(
        count=len(ordered), p50_s=at(0.5), p90_s=at(0.9), p99_s=at(0.99), max_s=at(1.0)
    )
