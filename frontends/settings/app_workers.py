"""Settings of the workers that deployed apps run in."""

from __future__ import annotations

from dataclasses import dataclass

from flashpool.pool.limits import WORKERS_MAX

from . import parsers as kind
from .field import setting


@dataclass(frozen=True, kw_only=True)
class AppWorkerSettings:
    """The number of app workers, and their limits."""

    __slots__ = ()

    app_workers: int | None = setting(
        kind.automatic(kind.integer(1, WORKERS_MAX)),
        "auto",
        "Workers of a deployed app; auto: one per GPU, else one. Workers do not share module "
        "state.",
    )
    app_concurrency: int = setting(
        kind.integer(1, 100_000),
        "100",
        "Requests that run at once in one worker of a deployed app; further requests wait.",
    )
    app_websockets: int = setting(
        kind.integer(0, 100_000),
        "1000",
        "WebSockets open at once in one worker of a deployed app; further ones are refused "
        "with 503.",
    )
    app_threads: int | None = setting(
        kind.automatic(kind.integer(1, 10_000)),
        "auto",
        "Threads per worker of a deployed app for routes that are not coroutines; auto: the "
        "framework's default, 40.",
    )
    app_start_timeout_s: float = setting(
        kind.seconds(),
        "300",
        "Seconds a deployed app may take to load; and its interpreter to come up, and each package "
        "that it preloads.",
    )
