"""From settings to a service over the backend of this very process; nothing is started yet."""

from __future__ import annotations

from flashpool.pool.supervisor.supervisor import Supervisor

from .ceilings import Ceilings
from .service import Service
from .settings.table import Settings


def make_service(settings: Settings, result_limit: int) -> Service:
    """``result_limit``: bytes of an encoded result that an answer takes."""
    pool = Supervisor(settings.to_pool_config(), settings.to_env_settings())
    return Service(
        pool,
        result_limit=result_limit,
        concurrency=settings.instance_concurrency,
        ceilings=Ceilings.of(settings),
    )
