"""The configuration of a pool. Front-ends fill it from `settings`, `Pool` from its arguments."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypedDict

from flashpool.pool._child.fork_server import memory_tricks as tricks

#: Variables from which OpenMP, OpenBLAS, MKL, BLIS, numexpr and Apple's library take their number
#: of threads.
_THREAD_LIMITS: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_MAX_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
#: Variables that keep libraries from starting threads at import, which no fork would have: jemalloc
#: in pyarrow, and in libraries in Rust (polars); numexpr.
_NO_THREADS: Final = {
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    # Beside it what polars itself sets, where nothing is set.
    "_RJEM_MALLOC_CONF": "background_thread:false,dirty_decay_ms:500,muzzy_decay_ms:1000",
    # More when a call asks for them (`numexpr.set_num_threads`).
    "NUMEXPR_NUM_THREADS": "1",
}


def usable_cores() -> int:
    """Cores this process may run on (affinity respected, cgroup quota too)."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min(cores, _quota_cores() or cores))


def _quota_cores() -> int | None:
    """Cores a cgroup v2 CPU quota leaves, or None without one."""
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else max(1, int(quota) // int(period))


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """Limits and defaults of one pool. Times in seconds, sizes as named."""

    #: Interpreter that calls without dependencies run in.
    base_python: str = sys.executable
    #: Calls that run at once.
    slots: int = field(default_factory=usable_cores)
    #: Calls that share the cores, as a rule; None: as many as there are slots.
    sharing: int | None = None
    #: Calls that may wait; one more is refused as `Overloaded`. None: no bound.
    queue_limit: int | None = 1000
    #: Defaults for calls without limits of their own.
    queue_timeout_s: float | None = None
    call_timeout_s: float | None = None
    memory_mb: int | None = None
    #: Seconds between SIGTERM and SIGKILL.
    grace_s: float = 2.0
    #: Seconds for what a call leaves to be done at its exit (threads, exit hooks), and how long
    #: of these its answer waits for that.
    exit_s: float = 10.0
    exit_answer_s: float = 0.25
    #: Seconds a zygote may take to start (site, checks), and each package that it preloads.
    start_timeout_s: float = 60.0
    #: Bytes of output kept per call; the middle is cut.
    output_limit: int = 1024 * 1024
    #: Whether workers have separate pipes for descriptors 1 and 2; else one pipe.
    split_output: bool = False
    #: Most spares kept ahead per zygote; the number in use adapts below it.
    max_spares: int = 8
    #: Seconds without a call after which spares are stopped.
    spare_idle_s: float = 60.0
    #: Environments beside the base whose zygotes may run at once, and the seconds without a call
    #: after which one is stopped.
    max_environments: int = 32
    environment_idle_s: float = 900.0
    #: GPUs of calls that do not say how many; None: one, where there are GPUs.
    gpus_per_call: int | None = None
    #: Calls that may be on one GPU at once.
    calls_per_gpu: int = 1
    #: Seconds for a GPU's memory to come back after a call, and the MiB that may be missing.
    gpu_settle_s: float = 10.0
    gpu_tolerance_mb: int = 64
    #: Class instances that may have a worker at once, the seconds without a call after which
    #: one is closed, and the MiB all may use before idle ones are.
    instances: int = 16
    instance_idle_s: float | None = 900.0
    instances_mb: int | None = None
    #: The same for GPU memory.
    instances_gpu_mb: int | None = None
    #: Calls of one instance's async methods that run together, where a call does not say.
    instance_concurrency: int = 32
    #: Modules every zygote imports before it forks.
    preload: tuple[str, ...] = ()
    #: Glob patterns of modules that may be preloaded because calls import them.
    preload_learn: tuple[str, ...] = ("*",)
    #: Zygotes of one environment that preload what its functions import, at most.
    preload_zygotes: int = 4
    #: Environment of zygotes, and so of calls; `thread_limits` fill in what it leaves open.
    worker_env: Mapping[str, str] = field(default_factory=dict)
    #: Put in front of the worker's ``sys.path`` (a program's own modules, for `Pool`).
    extra_path: tuple[str, ...] = ()
    #: Working directory of calls; ``/`` when it is gone.
    workdir: str = field(default_factory=os.getcwd)
    #: ``fork``, or ``spawn``: every worker performs its own start-up.
    start_method: str = "fork"
    #: Ways in which zygotes make forks cheaper that rely on CPython's memory and on the kernel.
    memory_tricks: tuple[str, ...] = tricks.ALL
    #: Level of the worker's root logger.
    log_level: str = "INFO"

    def zygote_env(self) -> dict[str, str]:
        """The environment that zygotes are started with."""
        limits = thread_limits(usable_cores(), self.sharing or self.slots)
        return {**limits, **_NO_THREADS, **self.worker_env}


class PoolKeywords(TypedDict, total=False):
    """The fields of `PoolConfig` that `Pool` accepts as keywords, for editors and type checkers."""

    base_python: str | os.PathLike[str]
    queue_limit: int | None
    queue_timeout_s: float | None
    grace_s: float
    exit_s: float
    exit_answer_s: float
    start_timeout_s: float
    output_limit: int
    max_spares: int
    spare_idle_s: float
    max_environments: int
    environment_idle_s: float
    gpus_per_call: int | None
    calls_per_gpu: int
    gpu_settle_s: float
    gpu_tolerance_mb: int
    instances: int
    instance_idle_s: float | None
    instances_mb: int | None
    instances_gpu_mb: int | None
    instance_concurrency: int
    preload: Iterable[str]
    preload_learn: Iterable[str]
    preload_zygotes: int
    worker_env: Mapping[str, str]
    extra_path: Iterable[str]
    workdir: str | os.PathLike[str]
    start_method: str
    memory_tricks: Iterable[str]
    log_level: str


def thread_limits(cores: int, slots: int) -> dict[str, str]:
    """Variables that give the native libraries of each call its share of the cores.

    Libraries read them when they are loaded. Without them, concurrent calls would each start a
    thread per core.
    """
    return dict.fromkeys(_THREAD_LIMITS, str(max(1, cores // slots)))
