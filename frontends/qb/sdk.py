"""The only module that touches `runpod`: the parts of the SDK that flashpool replaces.

    rp_scale.JobScaler               -> `loop.JobLoop`
    rp_ping.Heartbeat.process_loop   -> `heartbeat.Heartbeat`
    rp_fastapi.WorkerAPI             -> a subclass, which `local_modes` serves

Importing this module imports `runpod`, which reads its variables only then. Only `entry` imports
it, after it has set variables that were not set. The replaced names are checked, so that an SDK
with other names is refused instead of running without flashpool.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from runpod import serverless
from runpod.http_client import AsyncClientSession
from runpod.serverless.modules import rp_http, rp_job, rp_ping, rp_scale
from runpod.serverless.modules.rp_job import JOB_GET_URL

from .heartbeat import Heartbeat
from .local_modes import LocalHandler
from .loop import JobLoop
from .platform_posts import Addresses
from .worker import QueueWorker

#: Names of the SDK's loop that `loop` overrides or uses.
_OF_SCALER: Final = (
    "start", "run", "get_jobs", "run_jobs", "set_scale", "monitor_stop_signals", "stop_job",
    "handle_shutdown",
)  # fmt: skip


def missing_parts() -> list[str]:
    """Return names that flashpool replaces or uses, and that the installed SDK lacks."""
    missing = [name for name in _OF_SCALER if not hasattr(rp_scale.JobScaler, name)]
    missing += [
        f"{module.__name__}.{name}"
        for module, name in (
            (rp_job, "_job_get_url"),
            (rp_http, "JOB_DONE_URL"),
            (rp_http, "JOB_STREAM_URL"),
            (rp_ping.Heartbeat, "process_loop"),
            (rp_ping.Heartbeat, "_process_started"),
            (serverless, "start"),
            (serverless, "parser"),
        )
        if not hasattr(module, name)
    ]
    return missing


def arguments(given: list[str]) -> Any:
    """Return the SDK's flags as the SDK parses them; exit for ``--help`` and invalid flags."""
    known, _ = serverless.parser.parse_known_args(given)
    return known


def has_queue() -> bool:
    """Return whether the platform has set the address of a queue."""
    return "/job-take/" in JOB_GET_URL


def addresses() -> Addresses:
    """Return the URLs to post to."""
    stream = rp_http.JOB_STREAM_URL
    return Addresses(done=rp_http.JOB_DONE_URL, stream=stream if "://" in stream else None)


def session() -> Any:
    """Return an HTTP session with the worker's key."""
    return AsyncClientSession()


def start(
    given: list[str],
    handler: Callable[..., Any],
    concurrency: Callable[[int], int],
    make: Callable[[], QueueWorker],
    api: LocalHandler | None,
    drain_s: float,
) -> None:
    """Run ``runpod.serverless.start`` with flashpool's loop, or with the SDK's API."""
    heartbeat = Heartbeat(rp_ping.Heartbeat.process_loop)
    rp_scale.JobScaler = partial(JobLoop, make=make, drain_s=drain_s, heartbeat=heartbeat)
    rp_ping.Heartbeat.process_loop = staticmethod(heartbeat)
    if api is not None:
        _replace_api(api)
    # The SDK reads its flags from sys.argv.
    sys.argv[1:] = given
    serverless.start({"handler": handler, "concurrency_modifier": concurrency})


def _replace_api(local: LocalHandler) -> None:
    from runpod.serverless.modules import rp_fastapi

    @asynccontextmanager
    async def without_state(app: Any) -> AsyncIterator[None]:
        # A value that a lifespan yields becomes the state of its requests.
        async with local.lifespan(app):
            yield

    class Api(rp_fastapi.WorkerAPI):  # type: ignore[misc]
        """The SDK's API, with a pool that runs while the API is served."""

        def __init__(self, config: dict[str, Any]) -> None:
            super().__init__(config)
            self.rp_app.router.lifespan_context = without_state

        def start_uvicorn(
            self, api_host: str = "localhost", api_port: int = 8000, api_concurrency: int = 1
        ) -> None:
            """Serve in one process, because uvicorn refuses an application object for more.

            ``api_concurrency`` is ignored: the pool runs jobs concurrently anyway.
            """
            local.serve(self.rp_app, api_host, int(api_port))

    rp_fastapi.WorkerAPI = Api
