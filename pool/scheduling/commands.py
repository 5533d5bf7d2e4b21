"""Types that scheduler and supervisor exchange: keys, commands, and the policy.

    Supervisor -- one event at a time --> Scheduler -- a list of commands --> Supervisor

A command is plain data: it names calls, workers and zygotes, and what to do with them. The
docstring of a command names the events that answer it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class ZygoteKey(NamedTuple):
    """Identifies a zygote: an environment, and its set of preloaded modules (0: none)."""

    environment: str
    profile: int = 0


class StartZygote(NamedTuple):
    """Start a zygote; answer with `zygote_ready` or `zygote_lost`."""

    key: ZygoteKey


class RetireZygote(NamedTuple):
    """Let a zygote that no call needs exit when its workers have."""

    key: ZygoteKey


class ForkWorkers(NamedTuple):
    """Fork spares; answer each with `worker_ready` or `worker_not_ready`."""

    key: ZygoteKey
    number: int


class DismissWorker(NamedTuple):
    """Stop a spare; answer with `worker_gone`."""

    worker: int


class Dispatch(NamedTuple):
    """Hand a call to a spare, with these GPUs."""

    call: int
    worker: int
    gpus: tuple[str, ...] = ()


class Grant(NamedTuple):
    """Tell a resident that asked for a slot that it has one."""

    worker: int


class Fail(NamedTuple):
    """Fail a waiting call: its zygote cannot be started, because of ``reason``."""

    call: int
    key: ZygoteKey
    reason: str


Command = StartZygote | RetireZygote | ForkWorkers | DismissWorker | Dispatch | Grant | Fail


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerPolicy:
    """The scheduler's settings."""

    slots: int
    queue_limit: int | None = None
    max_spares: int = 8
    spare_idle_s: float = 60.0
    #: Environments besides the base that may run at once.
    max_environments: int = 32
    environment_idle_s: float = 900.0


class QueueFull(Exception):
    """The queue is at its limit."""
