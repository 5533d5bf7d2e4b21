"""The configuration of a pool. Front-ends fill it from `settings`, `Pool` from its arguments."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypedDict

from flashpool.pool._child.fork_server import memory_tricks as tricks

#: Variables from which OpenMP, OpenBLAS, MKL, BLIS, numexpr and Apple's Accelerate take their
#: number of threads.
_THREAD_LIMITS: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_MAX_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
#: Variables that keep libraries from starting threads at import, which a fork would not have:
#: jemalloc in pyarrow and in libraries written in Rust (polars); numexpr.
_NO_THREADS: Final = {
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    # The rest is what polars itself sets when the variable is unset.
    "_RJEM_MALLOC_CONF": "background_thread:false,dirty_decay_ms:500,muzzy_decay_ms:1000",
    # A call may ask for more (`numexpr.set_num_threads`).
    "NUMEXPR_NUM_THREADS": "1",
}


def usable_cores() -> int:
    """Return how many cores this process may use, by affinity and cgroup quota."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min(cores, _quota_cores() or cores))


def _quota_cores() -> int | None:
    """Return the cores that a cgroup v2 CPU quota allows; None: no quota."""
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else max(1, int(quota) // int(period))


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """Limits and defaults of one pool. Times are in seconds, sizes as named."""

    #: Interpreter that runs calls without dependencies.
    base_python: str = sys.executable
    #: Calls that run at once.
    slots: int = field(default_factory=usable_cores)
    #: Calls among which the cores are divided; None: as many as there are slots.
    sharing: int | None = None
    #: Calls that may wait; one more is refused as `Overloaded`. None: no limit.
    queue_limit: int | None = 1000
    #: Defaults for calls without limits of their own.
    queue_timeout_s: float | None = None
    call_timeout_s: float | None = None
    memory_mb: int | None = None
    #: Seconds between SIGTERM and SIGKILL.
    grace_s: float = 2.0
    #: Seconds that threads and exit hooks may take after a call's function returned, and how many
    #: of these seconds the answer waits for them.
    exit_s: float = 10.0
    exit_answer_s: float = 0.25
    #: Seconds in which a zygote must start (site, checks), and import each package that it
    #: preloads.
    start_timeout_s: float = 60.0
    #: Bytes of output kept per call; the middle is cut.
    output_limit: int = 1024 * 1024
    #: Whether workers have separate pipes for descriptors 1 and 2; else one pipe.
    split_output: bool = False
    #: Most spares kept per zygote; the number in use adapts below it.
    max_spares: int = 8
    #: Seconds without a call after which spares are stopped.
    spare_idle_s: float = 60.0
    #: Environments beside the base whose zygotes may run at once, and the idle seconds after which
    #: a zygote is stopped.
    max_environments: int = 32
    environment_idle_s: float = 900.0
    #: GPUs of a call that does not say how many; None: one if there are GPUs.
    gpus_per_call: int | None = None
    #: Calls that may be on one GPU at once.
    calls_per_gpu: int = 1
    #: Seconds in which a GPU's memory must be freed after a call, and the MiB that may stay in use.
    gpu_settle_s: float = 10.0
    gpu_tolerance_mb: int = 64
    #: Class instances that may have a worker at once, the idle seconds after which an instance is
    #: closed, and the MiB that all may use together before idle ones are closed.
    instances: int = 16
    instance_idle_s: float | None = 900.0
    instances_mb: int | None = None
    #: The same limit for their GPU memory.
    instances_gpu_mb: int | None = None
    #: Calls of one instance's async methods that run at once, unless the call says how many.
    instance_concurrency: int = 32
    #: Modules every zygote imports before it forks.
    preload: tuple[str, ...] = ()
    #: Glob patterns of modules that may be preloaded because calls import them.
    preload_learn: tuple[str, ...] = ("*",)
    #: Most zygotes of one environment that preload what its functions import.
    preload_zygotes: int = 4
    #: Environment variables of zygotes, and so of calls; `thread_limits` adds those that are
    #: missing.
    worker_env: Mapping[str, str] = field(default_factory=dict)
    #: Entries in front of the worker's ``sys.path`` (a program's own modules, for `Pool`).
    extra_path: tuple[str, ...] = ()
    #: Working directory of calls; ``/`` if it no longer exists.
    workdir: str = field(default_factory=os.getcwd)
    #: ``fork``, or ``spawn``: every worker performs its own start-up.
    start_method: str = "fork"
    #: Memory tricks that zygotes may use; they rely on CPython's memory and on the kernel.
    memory_tricks: tuple[str, ...] = tricks.ALL
    #: Level of the worker's root logger.
    log_level: str = "INFO"

    def zygote_env(self) -> dict[str, str]:
        """Return the environment variables that zygotes are started with."""
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
    """Return variables that give the native libraries of each call its share of the cores.

    Libraries read them when they are loaded. Without them, concurrent calls would each start a
    thread per core.
    """
    return dict.fromkeys(_THREAD_LIMITS, str(max(1, cores // slots)))
