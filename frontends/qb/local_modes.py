"""The SDK's local modes: one job from the command line, and its API on loopback.

    --test_input, test_input.json    a pool for this one job
    --rp_serve_api, realtime         a pool for as long as the API is served

Both modes call the handler. The SDK parses its answer, and extracts an `error` that it finds.
Nothing is posted, and a generator's items are returned as a list. flashpool runs the uvicorn that
serves the API: the SDK's would wait without a limit for running jobs when it stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
import sys
from collections.abc import AsyncIterator, Callable
from types import FrameType
from typing import Any, Final

import msgspec
import uvicorn

from flashpool.frontends.admin import Admin, JobCounts
from flashpool.frontends.exposure import is_loopback
from flashpool.frontends.http_server.same_machine import SameMachine
from flashpool.frontends.settings.table import Settings
from flashpool.frontends.shutdown import drain
from flashpool.pool.calls import Outcome
from flashpool.pool.errors import InvalidRequest

from . import jobs
from .job_run import JobOutputs
from .job_runners import JobRunner
from .log_lines import LiveLines
from .outbox import JobReport
from .results import of_error

_log = logging.getLogger(__name__)

#: Exit status of uvicorn's own command when it cannot listen.
_NOT_STARTED: Final = 3
#: A path of the platform's API, with the SDK's path as a group; SDK paths that the platform has as
#: GET.
_OF_PLATFORM: Final = re.compile(r"/v2/[^/]+(/(?:run|runsync|status/[^/]+|stream/[^/]+))")
_ASKED: Final = ("/status/", "/stream/")
#: Creates a runner of jobs, and the admin listener of a server.
Open = Callable[[], tuple[JobRunner, Admin | None]]


class LocalHandler:
    """``handler(job)`` of the SDK."""

    def __init__(self, settings: Settings, make: Open, counts: JobCounts) -> None:
        self._settings = settings
        self._make = make
        self._counts = counts
        self._runner: JobRunner | None = None

    async def __call__(self, job: dict[str, Any]) -> Any:
        """Run one job; return the answer, with ``error`` if the job failed."""
        if self._runner is not None:
            return await self._run(self._runner, job)
        async with self.lifespan() as runner:
            return await self._run(runner, job)

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncIterator[JobRunner]:
        """Run a pool for all jobs while the API is served."""
        runner, admin = self._make()
        await runner.start()
        try:
            if admin is not None:
                await admin.start()
            self._runner = runner
            yield runner
        finally:
            await runner.stop("the server stops")
            self._runner = None
            if admin is not None:
                await admin.stop()

    def serve(self, app: Any, host: str, port: int) -> None:
        """Serve the SDK's API until a signal."""
        server = _ApiServer(app, host, port, self)
        server.run()
        if not server.started:
            sys.exit(_NOT_STARTED)

    async def stop(self, second_signal: asyncio.Event) -> None:
        """Let jobs finish during the drain, then cancel the others; each job is answered."""
        runner = self._runner
        if runner is None:
            return
        reason = await drain(runner.service, self._settings.drain_s, second_signal, what="job")
        await runner.stop(reason)

    async def _run(self, runner: JobRunner, job: dict[str, Any]) -> Any:
        self._counts.taken += 1
        failed = True
        try:
            report = await self._report(runner, job)
            failed = report.failed
        finally:
            self._counts.ended(failed=failed)
        answer: dict[str, Any] = msgspec.json.decode(report.body)
        output, error = answer["output"], answer.get("error")
        if isinstance(output, dict):
            return {**output, "error": error}
        return output if error is None else {"error": error}

    async def _report(self, runner: JobRunner, job: dict[str, Any]) -> JobReport:
        found = jobs.of_value(job)
        if found is None:
            outcome: Outcome = of_error(InvalidRequest("the job has no id"))
            job_id = "none"
        else:
            job_id = found.id
            lines = LiveLines(job_id, self._settings.output_limit_kb * 1024)
            outcome = await runner.run(found, JobOutputs(lines=lines)).outcome()
        return await runner.results.report(job_id, outcome, streamed=False)


class PlatformPaths:
    """Also serves the paths and methods of RunPod's own API, for clients of a local queue.

    POST /v2/<endpoint>/runsync      -> POST /runsync
    GET  /v2/<endpoint>/status/<id>  -> POST /status/<id>, where the SDK's API runs the job
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle one request, or the server's start and stop."""
        found = _OF_PLATFORM.fullmatch(scope["path"]) if scope["type"] == "http" else None
        if found is not None:
            scope = {**scope, "path": found[1], "raw_path": found[1].encode()}
            if found[1].startswith(_ASKED):
                scope["method"] = "POST"
        await self._app(scope, receive, send)


class _ApiServer(uvicorn.Server):
    """uvicorn, which stops the jobs while it waits for their answers to be sent."""

    def __init__(self, app: Any, host: str, port: int, local: LocalHandler) -> None:
        level = os.environ.get("UVICORN_LOG_LEVEL", "info")
        guarded = SameMachine(PlatformPaths(app), loopback=is_loopback(host))
        super().__init__(
            uvicorn.Config(guarded, host=host, port=port, log_level=level, access_log=False)
        )
        self._local = local
        self._second_signal = asyncio.Event()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the drain at the first signal; end the drain at the second."""
        if self.should_exit:
            asyncio.get_running_loop().call_soon_threadsafe(self._second_signal.set)
        else:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop the jobs while uvicorn waits for their answers."""
        stopping = asyncio.ensure_future(self._local.stop(self._second_signal))
        await super().shutdown(sockets)
        await stopping
