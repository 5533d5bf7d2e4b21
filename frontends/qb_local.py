"""The SDK's local modes: one job from the command line, and its API on loopback.

    --test_input, test_input.json    a pool for this one job
    --rp_serve_api, realtime         a pool for as long as the API is served

Both call the handler, whose answer the SDK takes apart: what it finds as `error` it lifts out.
Nothing is posted anywhere, and a generator's items come as a list.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from flashpool.pool.calls import Outcome
from flashpool.pool.errors import InvalidRequest
from flashpool.pool.settings import Settings

from . import qb_jobs
from .admin import Admin
from .qb_output import LiveLines
from .qb_results import Results, of_error
from .qb_run import JobRun, Ways
from .qb_worker import report_limit, spill_of
from .service import Service

log = logging.getLogger(__name__)

#: Makes a service, and the admin listener of a server.
Open = Callable[[], tuple[Service, Admin | None]]


class LocalHandler:
    """``handler(job)`` of the SDK."""

    def __init__(self, settings: Settings, make: Open) -> None:
        self._settings = settings
        self._make = make
        self._service: Service | None = None
        self._spill = spill_of(settings)

    async def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run one job; the answer, with `error` when it failed."""
        if self._service is not None:
            return await self._run(self._service, job)
        async with self.lifespan() as service:
            return await self._run(service, job)

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncIterator[Service]:
        """Have one pool for all jobs meanwhile."""
        service, admin = self._make()
        await service.start()
        try:
            if admin is not None:
                await admin.start()
            self._service = service
            yield service
        finally:
            self._service = None
            await service.stop()
            if admin is not None:
                await admin.stop()

    async def _run(self, service: Service, job: dict[str, Any]) -> dict[str, Any]:
        found = qb_jobs.of_value(job)
        results = Results(service, report_limit(self._settings), self._spill)
        if found is None:
            outcome: Outcome = of_error(InvalidRequest("the job has no id"))
            job_id = "none"
        else:
            job_id = found.id
            lines = LiveLines(job_id, self._settings.output_limit_kb * 1024)
            outcome = await JobRun(found, service, self._settings, Ways(lines=lines)).outcome()
        report = await results.report(job_id, outcome, streamed=False)
        answer: dict[str, Any] = msgspec.json.decode(report.body)
        return {**answer["output"], "error": answer.get("error")}
