"""Jobs of a deployed app: when there are to be any, and what runs them.

    prepare --> App --> pool.open_app --> loading --> served        jobs as many as run together
                  |                           `-----> failed        the app's own fault: jobs, which fail
                  `-- AppError                                      it may pass: none, until it is too late

A client waits without end for a job that nobody takes. So where trying again does not help, jobs are
taken and each fails with the reason; where it may help, they are left to other workers, and this one
tries again, less and less often, and leaves when that has gone on for `FLASHPOOL_APP_GIVE_UP_S`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from flashpool.frontends.apps.errors import AppError
from flashpool.frontends.qb.job_run import JobOutputs
from flashpool.frontends.qb.jobs import Job, NothingRuns
from flashpool.frontends.qb.spill import Spill
from flashpool.frontends.service import Service
from flashpool.frontends.settings.table import Settings
from flashpool.pool.apps import App, AppService, AppState
from flashpool.pool.errors import FlashpoolError

from .app_job_run import AppJobRun
from .app_results import AppResults

_log = logging.getLogger(__name__)

#: Seconds until the artifact is looked at again; the last one again and again.
_PAUSES_S: Final = (1.0, 4.0, 15.0, 30.0)
#: Of a failure, in the message of the process that leaves.
_TOLD: Final = 2000


class AppNotLoaded(FlashpoolError):
    """There is no app to run a job in."""


class AppJobs:
    """Jobs of one resource, in the workers of its app."""

    def __init__(
        self,
        settings: Settings,
        service: Service,
        prepare: Callable[[Service], Awaitable[App]],
        *,
        report_limit: int,
        result_limit: int,
        spill: Spill | None,
    ) -> None:
        """``prepare`` makes the app ready to be opened; it raises `AppError` when it cannot."""
        self.service = service
        self.results = AppResults(service, report_limit, spill)
        self._settings = settings
        self._prepare = prepare
        self._result_limit = result_limit
        self._app: AppService | None = None
        self._capacity = 1
        self._failure: AppError | None = None
        #: Set once an app is there, or why there is none.
        self._known = asyncio.Event()
        #: When it began that no app was there, for a reason that may pass.
        self._failing_since: float | None = None
        self._opening: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the pool, and have the app loaded."""
        await self.service.start()
        self._opening = asyncio.ensure_future(self._open())

    async def _open(self) -> None:
        pauses = iter(_PAUSES_S)
        pause = 0.0
        while True:
            try:
                app = await self._prepare(self.service)
                break
            except AppError as error:
                if self._failure is None or str(self._failure) != str(error):
                    _log.error("The app cannot be loaded: %s", error)
                self._failure = error
                self._known.set()
            pause = next(pauses, pause)
            await asyncio.sleep(pause)
        self._failure = None
        self._capacity = app.workers * app.concurrency
        self._app = self.service.pool.open_app(app)
        self._known.set()

    async def wait_ready(self) -> None:
        """Until the pool can run what is asked of it; `room` knows of the app."""
        await self.service.pool.wait_ready()

    async def stop(self, reason: str) -> None:
        """End the pool."""
        if self._opening is not None:
            self._opening.cancel()
        await self.service.stop(reason)

    def room(self, active: int) -> int:
        """As many as its workers run together, or would, where each of them fails."""
        if self._app is None:
            failed, passes = (
                self._failure is not None,
                self._failure is None or self._failure.passes,
            )
        else:
            state = self._app.state
            failed, passes = state is AppState.FAILED, self._app.failure_passes
            if state is AppState.LOADING:
                return active
        if not failed:
            self._failing_since = None
            if self._app is None:
                return active
        elif passes:
            self._look_at_clock()
            return active
        most = self._settings.qb_concurrency or self._capacity
        return active + max(0, min(most, self._capacity) - active)

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        limit_s = self._settings.app_give_up_s
        if now - self._failing_since >= limit_s:
            raise NothingRuns(
                f"the app could not be loaded for {limit_s:g} s (FLASHPOOL_APP_GIVE_UP_S), and no "
                f"job was taken meanwhile: {self._reason[:_TOLD]}"
            )

    @property
    def _reason(self) -> str:
        if self._app is not None:
            return self._app.failure
        return str(self._failure) if self._failure is not None else "it is being looked for"

    async def app(self) -> AppService:
        """The app, once it is opened.

        Raises:
            AppNotLoaded: it could not be, the last time it was tried.
        """
        await self._known.wait()
        if self._app is None:
            raise AppNotLoaded(f"the application cannot be loaded: {self._failure}")
        return self._app

    def run(self, job: Job, ways: JobOutputs) -> AppJobRun:
        """One job."""
        return AppJobRun(
            job,
            self.service,
            self._settings,
            ways,
            find_app=self.app,
            result_limit=self._result_limit,
        )
