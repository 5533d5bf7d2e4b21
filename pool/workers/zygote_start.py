"""Settings with which a zygote starts: the pool's, and those of an app whose workers it forks."""

from __future__ import annotations

from dataclasses import replace

from flashpool.pool import pickling, trace_context
from flashpool.pool.apps import App
from flashpool.pool.config import PoolConfig
from flashpool.pool.gpus.access import VARYING

from .ends import outcomes


def config_of(config: PoolConfig, app: App | None) -> PoolConfig:
    """Return the pool's settings with the variables, directory and start limit of an app.

    Modules read the variables when they are imported, which the zygote does. The zygote preloads
    modules that the app would import, so the app's start limit applies.
    """
    if app is None:
        return config
    return replace(
        config,
        worker_env={**config.worker_env, **app.env},
        workdir=app.directory,
        start_timeout_s=app.start_timeout_s,
    )


def fields_of(config: PoolConfig, app: App | None, method: str) -> dict[str, object]:
    """Return the fields of START; ``config`` is from `config_of`."""
    return {
        "path": list(config.extra_path),
        "app": "" if app is None else app.directory,
        "runtime": outcomes.runtime_packages(),
        "method": method,
        "split_output": config.split_output,
        "varying": [*VARYING, *trace_context.VARIABLES],
        "workdir": config.workdir,
        "log_level": config.log_level,
        "memory_tricks": config.memory_tricks,
        "grace": config.grace_s,
        "exit_s": config.exit_s,
        "exit_answer_s": config.exit_answer_s,
        "example": pickling.example(),
    }
