"""From settings to a service over the backend of this very process; nothing is started yet."""

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
    """``result_limit``: bytes of an encoded result that an answer takes; and what sets that."""
    # A client that is less patient than a build takes finds the environment when it comes again.
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
    # Late: OpenTelemetry is an extra, and costs what it takes to import.
    from .telemetry.tracing import tracing

    return tracing()


def make_live_routes(service: Service, settings: Settings) -> LiveApi:
    """Create the routes that clients of SDK 2.0 use beside ``/execute``."""
    return LiveApi(service, settings, os.environ)
