"""Runs one job of a deployed app; time limits and cuts are those of any job.

A limit or a stop ends the job for its client at once. The job's task is cancelled, and its worker
is stopped if that does not help. While other jobs run in the worker, only limits of the operator
stop it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Final

from flashpool.frontends.qb.job_run import JobOutputs, JobRun
from flashpool.frontends.qb.jobs import Job
from flashpool.frontends.qb.streaming import AROUND, CHUNK_LIMIT
from flashpool.frontends.service import Service
from flashpool.frontends.settings.table import Settings
from flashpool.pool.apps import AppService
from flashpool.pool.calls import Outcome, Phase
from flashpool.pool.errors import Cancelled, FlashpoolError, Timeout

from .app_job import AppJob, JobOptions

_ITEM_LIMIT: Final = CHUNK_LIMIT - AROUND


class AppJobRun(JobRun):
    """Runs one job of a deployed app."""

    def __init__(
        self,
        job: Job,
        service: Service,
        settings: Settings,
        ways: JobOutputs,
        *,
        find_app: Callable[[], Awaitable[AppService]],
        result_limit: int,
    ) -> None:
        super().__init__(job, service, settings, ways)
        self._find_app = find_app
        self._result_limit = result_limit
        self._app_job: AppJob | None = None

    async def _outcome(self) -> Outcome:
        if self._cut is not None:
            raise self._cut
        body = self._input()
        app = await self._find_app()
        if self._cut is not None:
            raise self._cut
        options = JobOptions(
            item_limit=_ITEM_LIMIT,
            result_limit=self._result_limit,
            on_item=None if self.items is None else self.items.put,
            on_output=self.output,
            lists=self._settings.return_aggregate_stream,
            limit_s=self._settings.call_timeout_s,
        )
        job = self._app_job = AppJob(app, options)
        self._phase = Phase.RUN
        job.begin(self.job.id, b'{"id":%b,"input":%b}' % (json.dumps(self.job.id).encode(), body))
        try:
            return await job.outcome
        except asyncio.CancelledError:
            job.end(Cancelled("the server gave up the job"), spares=True)
            raise
        finally:
            self._app_job = None

    def _stop(self, cause: FlashpoolError) -> None:
        if self._app_job is not None:
            # A stop from the platform, and the job's own limit, concern only this job.
            is_ours = isinstance(cause, Timeout) and not self.job.limit_s
            self._app_job.end(cause, spares=not is_ours)

    def without_items(self, outcome: Outcome) -> Outcome:
        """Return the outcome after items were lost: a failure unless the result contains them."""
        if self._settings.return_aggregate_stream or not outcome.ok:
            return outcome
        return self._lost_items(outcome)

    def _credit(self) -> None:
        if self._app_job is not None:
            self._app_job.credit_item()
