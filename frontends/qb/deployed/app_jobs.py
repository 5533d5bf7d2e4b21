"""Jobs of a deployed app: decides how many jobs are taken, and runs them in the app's workers.

    source --prepare--> PreparedApp --> pool.open_app --> loading: no jobs
              |                                              |--> served: as many as run at once
              '-- AppError ----------------------------------'--> failed
                        for good: jobs are taken, and fail; for now: no jobs, and later an exit

A client waits without end for a job that no worker takes. If another attempt to load the app cannot
help, jobs are taken and fail with the reason. If it may help, jobs are left to other workers; this
worker tries again at growing intervals, and exits after `FLASHPOOL_APP_GIVE_UP_S`. An app that
cannot be loaded is replaced if a retry finds another artifact.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from flashpool.frontends.apps.contract import EntryKind
from flashpool.frontends.apps.errors import AppError, ResourceRefused
from flashpool.frontends.apps.preparation import AppSource, PreparedApp
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

#: Seconds until the artifact is read again; the last pause repeats.
_PAUSES_S: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
#: Characters of a failure that are logged if the process exits because of that failure.
_TOLD: Final = 2000


class AppNotLoaded(FlashpoolError):
    """No app is loaded that could run the job."""


class AppJobs:
    """Jobs of one resource, in the workers of its app."""

    def __init__(
        self,
        settings: Settings,
        service: Service,
        source: AppSource,
        *,
        report_limit: int,
        result_limit: int,
        spill: Spill | None,
    ) -> None:
        self.service = service
        self.results = AppResults(service, report_limit, spill)
        self._settings = settings
        self._source = source
        self._result_limit = result_limit
        #: The app once it is open; before that, why the last attempt to open it failed.
        self._app: AppService | None = None
        self._failure = ""
        self._failure_passes = True
        self._known = asyncio.Event()
        self._capacity = 1
        #: Since when no app could be loaded, for a temporary reason.
        self._failing_since: float | None = None
        self._prepared: PreparedApp | None = None
        self._opening: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._neighbours: asyncio.Task[None] | None = None

    # Life.

    async def start(self) -> None:
        """Start the pool, and begin to load the app."""
        await self.service.start()
        self._opening = asyncio.ensure_future(self._open())

    async def wait_ready(self) -> None:
        """Wait until the pool can run jobs; `room` depends on the app."""
        await self.service.pool.wait_ready()

    async def stop(self, reason: str) -> None:
        """Stop the app and the pool."""
        tasks = [one for one in (self._opening, self._looking, self._neighbours) if one]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.service.stop(reason)
        if self._prepared is not None:
            self._prepared.release()

    async def _open(self) -> None:
        for pause_s in _pauses():
            try:
                # After a failure, check for the artifact at intervals in place of waiting for it.
                await self._prepare_and_serve(wait=not self._failure)
            except AppError as error:
                passes, failure = error.passes, str(error)
            except Exception as error:  # noqa: BLE001 - jobs fail with the reason
                passes, failure = True, f"the app cannot be prepared: {error!r}"
            else:
                return
            if failure != self._failure:
                _log.error(
                    "%s: %s; it is tried again in %g s", self._source.resource, failure, pause_s
                )
            self._failure, self._failure_passes = failure, passes
            self._known.set()
            await asyncio.sleep(pause_s)

    async def _prepare_and_serve(self, *, wait: bool) -> None:
        prepared = await self._source.prepare(wait=wait)
        app = self._job_app(prepared)
        old, self._prepared = self._prepared, prepared
        if old is not None and self._app is not None:
            if old.folder.digest == prepared.folder.digest:
                old.release()  # the app has its folder from now on through the new lease
                return
            _log.info("%s: the artifact has changed: the app is replaced", app.name)
            self._app.retire(self._settings.drain_s, old.release)
        self._capacity = app.workers * app.concurrency
        self._app = self.service.pool.open_app(app)
        self._known.set()
        if self._neighbours is not None:
            self._neighbours.cancel()
        neighbours = prepared.neighbours
        self._neighbours = None if neighbours is None else asyncio.ensure_future(neighbours.run())

    def _on_retry(self) -> None:
        """Load an app that could not be loaded once more; the artifact may have changed."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._look_again())

    async def _look_again(self) -> None:
        if not (self._fails and await self._source.may_differ()):
            return
        try:
            await self._prepare_and_serve(wait=False)
        except Exception as error:  # noqa: BLE001 - jobs fail with the reason
            if str(error) != self._failure:
                _log.error("%s: the artifact has changed: %s", self._source.resource, error)
            self._failure = str(error)

    def _job_app(self, prepared: PreparedApp) -> App:
        """Return the app, with the number of concurrent jobs that its manifest sets.

        Raises:
            ResourceRefused: the resource takes no jobs.
        """
        deployed = prepared.deployed
        if deployed.entry.kind is not EntryKind.HANDLER:
            prepared.release()
            raise ResourceRefused(
                f"resource {deployed.resource!r} is load-balanced, and this is the queue's entry "
                "point: use the load-balanced image (lb_handler:app, or `flashpool serve lb`)"
            )
        workers = self._settings.app_workers or max(1, self.service.pool.stats().gpus.total)
        return replace(
            prepared.to_app(self._settings, workers),
            jobs=True,
            functions=tuple(one.name for one in deployed.functions),
            concurrency=deployed.entry.concurrency,
            threads=deployed.entry.concurrency,
            on_retry=self._on_retry,
        )

    # Taking jobs.

    def room(self, active: int) -> int:
        """Return how many jobs the app's workers run at once, even if each job would fail."""
        if self.service.pool.draining or not self._known.is_set():
            return active
        if self._app and self._app.state is AppState.LOADING:
            return active
        if self._fails and self._passes:
            self._look_at_clock()
            return active
        self._failing_since = None
        most = min(self._settings.qb_concurrency or self._capacity, self._capacity)
        return max(active, most)

    @property
    def _fails(self) -> bool:
        return self._app is None or self._app.state is AppState.FAILED

    @property
    def _passes(self) -> bool:
        return self._failure_passes if self._app is None else self._app.failure_passes

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        limit_s = self._settings.app_give_up_s
        if now - self._failing_since >= limit_s:
            reason = self._failure if self._app is None else self._app.failure
            raise NothingRuns(
                f"the app could not be loaded for {limit_s:g} s (FLASHPOOL_APP_GIVE_UP_S), and no "
                f"job was taken meanwhile: {reason[:_TOLD]}"
            )

    # Jobs.

    def run(self, job: Job, ways: JobOutputs) -> AppJobRun:
        """Run one job."""
        return AppJobRun(
            job,
            self.service,
            self._settings,
            ways,
            find_app=self._opened,
            result_limit=self._result_limit,
        )

    async def _opened(self) -> AppService:
        """Wait for the first attempt to open the app; return the app.

        Raises:
            AppNotLoaded: the app could not be opened.
        """
        await self._known.wait()
        if self._app is None:
            raise AppNotLoaded(f"the application cannot be loaded: {self._failure}")
        return self._app


def _pauses() -> Iterator[float]:
    yield from _PAUSES_S
    while True:
        yield _PAUSES_S[-1]
