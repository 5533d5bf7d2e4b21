"""Environments as front-ends see them: the pool's own, by a name of this package.

A request's packages -> Spec -> `Environments.resolve` -> Provision -> Call
"""

from __future__ import annotations

from flashpool.pool.environments import (
    MOST_WAITING,
    EnvironmentPool,
    Environments,
    Report,
    StoredEnvironments,
)

__all__ = ["MOST_WAITING", "EnvironmentPool", "Environments", "Report", "StoredEnvironments"]
