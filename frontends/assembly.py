"""Creates, from settings, a service over a pool in this process; starts nothing."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from flashpool.pool.supervisor.supervisor import Supervisor

from .ceilings import Ceilings
from .contracts.sdk2 import sdk_variables
from .contracts.sdk2.live_api import LiveApi
from .contracts.sdk2.live_calls import SdkCalls
from .instance_news import InstanceNews
from .replay.keeper import FailureKeeper
from .replay.kept import KeptRequests
from .service import Service
from .settings.table import Settings

if TYPE_CHECKING:
    from .telemetry.tracing import Tracing


def make_service(
    settings: Settings, result_limit: int, result_setting: str = "FLASHPOOL_RESULT_LIMIT_MB"
) -> Service:
    """Create the service; ``result_setting`` names what sets ``result_limit``, in bytes."""
    # A build goes on when its client times out: the client's next request finds the environment.
    environments = replace(settings.to_env_settings(), builds_go_on=True)
    pool = Supervisor(settings.to_pool_config(), environments)
    sdk = SdkCalls(
        settings.calls_runpod,
        sdk_variables.concurrency(os.environ),
        is_awaited=sdk_variables.is_live(os.environ),
    )
    return Service(
        pool,
        result_limit=result_limit,
        result_setting=result_setting,
        concurrency=settings.instance_concurrency,
        ceilings=Ceilings.of(settings),
        adapters=[sdk],
        logged_bytes_a_second=settings.log_output_kb_s * 1024,
        tracing=_tracing() if settings.telemetry else None,
        keeper=FailureKeeper(KeptRequests.of(settings), pool) if settings.keep_failed_mb else None,
        news=InstanceNews.of(environments, pool),
    )


def _tracing() -> Tracing | None:
    # Imported here: OpenTelemetry is an optional extra, and its import takes time.
    from .telemetry.tracing import tracing

    return tracing()


def make_live_routes(service: Service, settings: Settings) -> LiveApi:
    """Create the routes that clients of SDK 2.0 use beside ``/execute``."""
    return LiveApi(service, settings, os.environ)
