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

#: What requests may be forbidden to have.
FORBIDDABLE = ("dependencies", "system_dependencies", "env", "class", "python_version")


@dataclass(frozen=True, kw_only=True)
class Calls:
    """How many, and how long."""

    __slots__ = ()

    slots: int = setting(
        kind.integer(1, WORKERS_MAX), lambda: str(usable_cores()), "Calls that run at once."
    )
    queue_limit: int = setting(
        kind.integer(0, 1_000_000), "1000", "Calls that may wait; one more gets 503."
    )
    queue_timeout_s: float | None = setting(
        kind.optional(kind.seconds()), "none", "Seconds a call may wait for a slot."
    )
    call_timeout_s: float | None = setting(
        kind.optional(kind.seconds()),
        "600",
        "Seconds a call may run, unless its request says timeout_s.",
    )
    memory_mb: int | None = setting(
        kind.optional(kind.integer(MEMORY_MB_MIN, MEMORY_MB_MAX)),
        "none",
        "MiB a call's process tree may hold, unless its request says memory_mb.",
    )
    max_timeout_s: float | None = setting(
        kind.optional(kind.seconds()),
        "none",
        "Most seconds that a request may ask for with timeout_s; the default is no more, either.",
    )
    max_memory_mb: int | None = setting(
        kind.optional(kind.integer(MEMORY_MB_MIN, MEMORY_MB_MAX)),
        "none",
        "Most MiB that a request may ask for with memory_mb; the default is no more, either.",
    )
    forbid: tuple[str, ...] = setting(
        kind.some_of(*FORBIDDABLE),
        "none",
        "What requests may not have; they are refused.",
    )
    grace_s: float = setting(
        kind.seconds(zero=True), "2", "Seconds between SIGTERM and SIGKILL when a call is ended."
    )
    exit_s: float = setting(
        kind.seconds(zero=True),
        "10",
        "Seconds for what a call leaves to be done at its exit: threads, exit hooks.",
    )
    exit_answer_s: float = setting(
        kind.seconds(zero=True), "0.25", "Seconds of these that its answer waits for, at most."
    )
    drain_s: float = setting(
        kind.seconds(zero=True), "30", "Seconds running calls get to finish after SIGTERM."
    )
    output_limit_kb: int = setting(
        kind.integer(1, 1 << 20), "1024", "KiB of output kept per call; the middle goes first."
    )


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """What calls get of them."""

    __slots__ = ()

    gpus_per_call: int | None = setting(
        kind.automatic(kind.integer(0, 64)),
        "auto",
        "GPUs a call gets, unless its request says gpus; auto: 1 where there are GPUs, else 0.",
    )
    max_gpus_per_call: int | None = setting(
        kind.optional(kind.integer(0, 64)),
        "none",
        "Most GPUs that a request may ask for with gpus; the default is no more, either.",
    )
    calls_per_gpu: int = setting(kind.integer(1, 64), "1", "Calls that may be on one GPU at once.")
    gpu_settle_s: float = setting(
        kind.seconds(),
        "10",
        "Seconds for a GPU's memory to come back after a call; past that it is quarantined.",
    )
    gpu_tolerance_mb: int = setting(
        kind.integer(1, 1 << 20),
        "64",
        "MiB more in use than before its calls that count as come back.",
    )


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Where calls run: workers, zygotes, instances."""

    __slots__ = ()

    base_python: str = setting(
        kind.INTERPRETER,
        lambda: sys.executable,
        "Interpreter of calls that name no dependencies; they see its packages.",
    )
    calls_runpod: tuple[str, ...] = setting(
        kind.REQUIREMENTS,
        "runpod>=2.0.0rc2,<3",
        "The SDK that calls see whose source imports runpod, unless their request names it; none: the base's.",
    )
    start_timeout_s: float = setting(
        kind.seconds(),
        "60",
        "Seconds an interpreter may take to come up, and each package that it preloads.",
    )
    start_method: str = setting(
        kind.choice("fork", "spawn"),
        "fork",
        "How workers start: forked from a prepared process, or each on its own (slower).",
    )
    memory_tricks: tuple[str, ...] = setting(
        kind.some_of(*tricks.ALL, tricks.UNTRIED),
        ",".join(tricks.ALL),
        "Ways to make forks cheaper that rely on CPython's memory; none: calls are slower.",
    )
    spares: int = setting(
        kind.integer(0, 1024), "8", "Most workers kept ready ahead of calls, per zygote."
    )
    spare_idle_s: float = setting(
        kind.seconds(), "60", "Seconds without a call after which spares are stopped."
    )
    max_environments: int = setting(
        kind.integer(1, 1024),
        "32",
        "Environments beside the base whose processes are kept up at once.",
    )
    environment_idle_s: float = setting(
        kind.seconds(),
        "900",
        "Seconds without a call after which an environment's processes are stopped.",
    )
    instances: int = setting(
        kind.integer(1, WORKERS_MAX), "16", "Class instances that are kept at once."
    )
    instance_idle_s: float | None = setting(
        kind.optional(kind.seconds()),
        "900",
        "Seconds without a call after which an instance is closed.",
    )
    instances_mb: int | None = setting(
        kind.optional(kind.integer(1, 1 << 40)),
        "none",
        "Memory all instances may use before idle ones are closed, MiB.",
    )
    instances_gpu_mb: int | None = setting(
        kind.optional(kind.integer(1, 1 << 40)),
        "none",
        "GPU memory all instances may use before idle ones are closed, MiB.",
    )
    instance_concurrency: int = setting(
        kind.integer(1, CONCURRENCY_MAX),
        "32",
        "Calls of one instance's async methods that run together, unless the request says.",
    )
    preload: tuple[str, ...] = setting(
        kind.MODULES, "none", "Modules imported before workers are forked."
    )
    preload_learn: tuple[str, ...] = setting(
        kind.PATTERNS,
        "*",
        "Patterns of modules that may be preloaded because calls keep importing them.",
    )
    preload_zygotes: int = setting(
        kind.integer(1, PRELOAD_ZYGOTES_MAX),
        "4",
        "Zygotes of one environment that preload what its functions import, at most.",
    )
    pass_env: tuple[str, ...] = setting(
        kind.PATTERNS,
        "none",
        "Patterns of further variables calls may see; a secret only by its exact name.",
        pod=ON_A_POD,
    )
