"""Settings of calls: how many and how long, which GPUs they get, and the workers they run in."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from flashpool.pool._child.fork_server import memory_tricks as tricks
from flashpool.pool.config import usable_cores
from flashpool.pool.limits import (
    CONCURRENCY_MAX,
    MEMORY_MB_MAX,
    MEMORY_MB_MIN,
    PRELOAD_ZYGOTES_MAX,
    WORKERS_MAX,
)

from . import parsers as kind
from .field import setting
from .worker_env import ON_A_POD

#: Features that the operator can forbid to requests.
FORBIDDABLE = ("dependencies", "system_dependencies", "env", "class", "python_version")


@dataclass(frozen=True, kw_only=True)
class Calls:
    """Number and duration of calls."""

    __slots__ = ()

    slots: int = setting(
        kind.integer(1, WORKERS_MAX), lambda: str(usable_cores()), "Calls that run at once."
    )
    queue_limit: int = setting(
        kind.integer(0, 1_000_000),
        "1000",
        "Calls that may wait; further calls are refused with 503.",
    )
    queue_timeout_s: float | None = setting(
        kind.optional(kind.seconds()), "none", "Seconds a call may wait for a slot."
    )
    call_timeout_s: float | None = setting(
        kind.optional(kind.seconds()),
        "600",
        "Seconds a call may run, unless its request sets timeout_s.",
    )
    memory_mb: int | None = setting(
        kind.optional(kind.integer(MEMORY_MB_MIN, MEMORY_MB_MAX)),
        "none",
        "MiB of memory a call's process tree may use, unless its request sets memory_mb.",
    )
    max_timeout_s: float | None = setting(
        kind.optional(kind.seconds()),
        "none",
        "Largest timeout_s that a request may ask for; also caps the default.",
    )
    max_memory_mb: int | None = setting(
        kind.optional(kind.integer(MEMORY_MB_MIN, MEMORY_MB_MAX)),
        "none",
        "Largest memory_mb that a request may ask for; also caps the default.",
    )
    forbid: tuple[str, ...] = setting(
        kind.some_of(*FORBIDDABLE),
        "none",
        "Features that requests may not use; requests that use one are refused.",
    )
    grace_s: float = setting(
        kind.seconds(zero=True), "2", "Seconds between SIGTERM and SIGKILL when a call is stopped."
    )
    exit_s: float = setting(
        kind.seconds(zero=True),
        "10",
        "Seconds a call's process may take to exit after its function has returned (threads, "
        "exit hooks).",
    )
    exit_answer_s: float = setting(
        kind.seconds(zero=True),
        "0.25",
        "Seconds of that exit for which the response waits, at most.",
    )
    drain_s: float = setting(
        kind.seconds(zero=True), "30", "Seconds running calls may take to finish after SIGTERM."
    )
    output_limit_kb: int = setting(
        kind.integer(1, 1 << 20), "1024", "KiB of output kept per call; the middle is cut."
    )


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """GPUs of calls."""

    __slots__ = ()

    gpus_per_call: int | None = setting(
        kind.automatic(kind.integer(0, 64)),
        "auto",
        "GPUs per call, unless its request sets gpus; auto: 1 where there are GPUs, else 0.",
    )
    max_gpus_per_call: int | None = setting(
        kind.optional(kind.integer(0, 64)),
        "none",
        "Largest number of GPUs that a request may ask for; also caps the default.",
    )
    calls_per_gpu: int = setting(kind.integer(1, 64), "1", "Calls that may share one GPU.")
    gpu_settle_s: float = setting(
        kind.seconds(),
        "10",
        "Seconds a GPU may take to free the memory of an ended call before it is quarantined.",
    )
    gpu_tolerance_mb: int = setting(
        kind.integer(1, 1 << 20),
        "64",
        "MiB by which a GPU's used memory may exceed its level before the calls and still "
        "count as freed.",
    )


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Processes that run calls: workers, zygotes, instances."""

    __slots__ = ()

    base_python: str = setting(
        kind.INTERPRETER,
        lambda: sys.executable,
        "Interpreter of calls that name no dependencies; these calls see its packages.",
    )
    calls_runpod: tuple[str, ...] = setting(
        kind.REQUIREMENTS,
        "runpod>=2.0.0rc2,<3",
        "The runpod package for calls whose source imports it and whose request does not "
        "name it; none: the base's.",
    )
    start_timeout_s: float = setting(
        kind.seconds(),
        "60",
        "Seconds an interpreter may take to start, and each package that it preloads to import.",
    )
    start_method: str = setting(
        kind.choice("fork", "spawn"),
        "fork",
        "How workers start: forked from a prepared process, or each on its own (slower).",
    )
    memory_tricks: tuple[str, ...] = setting(
        kind.some_of(*tricks.ALL, tricks.UNTRIED),
        ",".join(tricks.ALL),
        "Optimisations of forks that rely on CPython's memory layout; none: calls are slower.",
    )
    spares: int = setting(
        kind.integer(0, 1024),
        "8",
        "Largest number of workers kept ready ahead of calls, per zygote.",
    )
    spare_idle_s: float = setting(
        kind.seconds(), "60", "Seconds without a call after which spares are stopped."
    )
    max_environments: int = setting(
        kind.integer(1, 1024),
        "32",
        "Environments, besides the base, whose processes are kept running at once.",
    )
    environment_idle_s: float = setting(
        kind.seconds(),
        "900",
        "Seconds without a call after which an environment's processes are stopped.",
    )
    instances: int = setting(kind.integer(1, WORKERS_MAX), "16", "Class instances kept at once.")
    instance_idle_s: float | None = setting(
        kind.optional(kind.seconds()),
        "900",
        "Seconds without a call after which an instance is closed.",
    )
    instances_mb: int | None = setting(
        kind.optional(kind.integer(1, 1 << 40)),
        "none",
        "MiB of memory all instances together may use before idle ones are closed.",
    )
    instances_gpu_mb: int | None = setting(
        kind.optional(kind.integer(1, 1 << 40)),
        "none",
        "MiB of GPU memory all instances together may use before idle ones are closed.",
    )
    instance_concurrency: int = setting(
        kind.integer(1, CONCURRENCY_MAX),
        "32",
        "Calls to async methods of one instance that run together, unless the request sets "
        "max_concurrency.",
    )
    preload: tuple[str, ...] = setting(
        kind.MODULES, "none", "Modules that zygotes import before they fork workers."
    )
    preload_learn: tuple[str, ...] = setting(
        kind.PATTERNS,
        "*",
        "Patterns of modules that may be preloaded once calls import them repeatedly.",
    )
    preload_zygotes: int = setting(
        kind.integer(1, PRELOAD_ZYGOTES_MAX),
        "4",
        "Largest number of zygotes per environment that preload what its functions import.",
    )
    pass_env: tuple[str, ...] = setting(
        kind.PATTERNS,
        "none",
        "Patterns of further environment variables that calls may see; a secret only by its "
        "exact name.",
        pod=ON_A_POD,
    )
