"""Runs jobs: live calls here, jobs of a deployed app in `deployed`."""

from __future__ import annotations

from typing import Protocol

from flashpool.frontends.service import Service
from flashpool.frontends.settings.table import Settings

from .job_run import JobOutputs, JobRun
from .jobs import Job
from .results import Results
from .spill import Spill


class JobRunner(Protocol):
    """Runs jobs in the pool of its service."""

    @property
    def service(self) -> Service:
        """Return the service that the runner owns and starts."""

    @property
    def results(self) -> Results:
        """Return the object that makes reports of the jobs it ran."""

    async def start(self) -> None:
        """Start; return before jobs can run."""

    async def wait_ready(self) -> None:
        """Wait until `room` can say how many jobs may run.

        Raises:
            EnvironmentStartFailed: no job can ever run.
        """

    async def stop(self, reason: str) -> None:
        """Stop the remaining jobs and the pool."""

    def room(self, active: int) -> int:
        """Return how many jobs there may be, if ``active`` jobs have or need a place to run.

        Raises:
            NothingRuns: no job will ever run here.
        """

    def run(self, job: Job, ways: JobOutputs) -> JobRun:
        """Run one job."""


class LiveJobs:
    """Jobs that bring their code: each is a call."""

    def __init__(
        self, settings: Settings, service: Service, limit: int, spill: Spill | None
    ) -> None:
        """``limit``: most bytes of a report."""
        self._settings = settings
        self.service = service
        self.results = Results(service, limit, spill)

    async def start(self) -> None:
        """Start the pool."""
        await self.service.start()

    async def wait_ready(self) -> None:
        """Wait until calls can run."""
        await self.service.pool.wait_ready()

    async def stop(self, reason: str) -> None:
        """Stop the pool."""
        await self.service.stop(reason)

    def room(self, active: int) -> int:
        """Return the number of slots."""
        pool = self.service.pool
        if not pool.ready:
            return active
        # `active` counts jobs without a slot; the pool counts slots that finished calls still hold.
        slots = pool.slots
        free = min(pool.free_slots, slots - active)
        return active + max(0, min(free, (self._settings.qb_concurrency or slots) - active))

    def run(self, job: Job, ways: JobOutputs) -> JobRun:
        """Run one job."""
        return JobRun(job, self.service, self._settings, ways)
