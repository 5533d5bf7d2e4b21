"""The parts that run and report jobs for the loop (`QueueWorker`), and one job (`ActiveJob`).

job --> run --> outcome --> items and progress are posted --> report --> delivered
                   `-- its slot is free
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

import aiohttp
import msgspec

from flashpool.frontends.admin import Admin, JobCounts, JobsStats
from flashpool.frontends.settings.table import Settings
from flashpool.pool.errors import Cancelled, FlashpoolError

from .delivery import Named, ReportDelivery
from .job_run import JobOutputs, JobRun
from .job_runners import JobRunner
from .jobs import Job
from .log_lines import LiveLines
from .outbox import JobReport, Outbox
from .paths import is_named, outbox_folder, report_key, spill_folder
from .platform_posts import Addresses, PlatformPosts
from .results import Results
from .spill import Spill
from .streaming import JobItems, Progress

_log = logging.getLogger(__name__)

#: Most seconds for posting a job's last items; the job's own limit may leave less.
_ITEMS_S: Final = 30.0
#: Seconds for a post of progress that has begun.
_PROGRESS_S: Final = 2.0
#: Most and least seconds for writing a result to the volume.
_SPILL_S: Final = 600.0
_LEAST_SPILL_S: Final = 1.0
_RESERVE: Final = 64 * 1024


class QueueWorker:
    """The parts that outlive a job. Create this object on the loop that runs it."""

    def __init__(
        self,
        settings: Settings,
        runner: JobRunner,
        session: aiohttp.ClientSession,
        addresses: Addresses,
        admin: Admin | None,
        counts: JobCounts | None = None,
    ) -> None:
        self._settings = settings
        self._runner = runner
        self._session = session
        self._admin = admin
        self._posts = PlatformPosts(session, addresses)
        self.results = runner.results
        self._counts = counts or JobCounts()
        outbox = Outbox(
            outbox_folder(settings),
            report_key(settings),
            is_named=is_named(),
            largest=report_limit(settings) + _RESERVE,
        )
        self.reports = ReportDelivery(
            self._posts, outbox, settings.report_retry_s, self.results.refused
        )
        #: By id: jobs that run, and jobs whose reports are not accepted yet.
        self.jobs: dict[str, ActiveJob] = {}

    async def start(self, named: Named) -> None:
        """Start; return before jobs can run."""
        await self._runner.start()
        if self._admin is not None:
            await self._admin.start()
        await self.reports.resume(named, self.jobs)

    async def wait_ready(self) -> None:
        """Wait until jobs can run.

        Raises:
            EnvironmentStartFailed: no job can ever run.
        """
        await self._runner.wait_ready()

    async def stop(self, reason: str) -> None:
        """Stop the remaining jobs and the pool."""
        await self.reports.close()
        await self._runner.stop(reason)
        await self._session.close()
        if self._admin is not None:
            await self._admin.stop()

    @property
    def active(self) -> int:
        """Return the number of jobs that have or need a slot, without those being reported."""
        return sum(not job.ended for job in self.jobs.values())

    def stats(self) -> JobsStats:
        """Return the counters for operators."""
        return self._counts.stats(len(self.reports))

    def concurrency(self, _current: int) -> int:
        """Return how many jobs there may be: the SDK's ``concurrency_modifier``.

        Raises:
            NothingRuns: no job will ever run here.
        """
        active = self.active
        return active if self.reports.full else self._runner.room(active)

    def begin(self, job: Job, freed: Callable[[], None]) -> ActiveJob:
        """Return a job to run and report; ``freed`` is called when its slot may be free."""
        posts, settings = self._posts, self._settings
        ways = JobOutputs(
            lines=LiveLines(job.id, settings.output_limit_kb * 1024),
            items=partial(JobItems, job.id, posts) if posts.streams else None,
            progress=Progress(job.id, posts) if settings.qb_progress else None,
        )
        run = self._runner.run(job, ways)
        self._counts.taken += 1
        running = self.jobs[job.id] = ActiveJob(
            run, ways, self.results, self.reports, self._counts, freed
        )
        return running


class ActiveJob:
    """One job, until the platform has accepted its report."""

    def __init__(
        self,
        run: JobRun,
        ways: JobOutputs,
        results: Results,
        reports: ReportDelivery,
        counts: JobCounts,
        freed: Callable[[], None],
    ) -> None:
        self.job = run.job
        self.ended = False
        self._was_cut_off = False
        self._run = run
        self._ways = ways
        self._results = results
        self._reports = reports
        self._counts = counts
        self._freed = freed

    def cut_off(self, reason: str) -> None:
        """Stop the job because this process stops."""
        self._was_cut_off = self.stop(reason)

    def stop(self, reason: str) -> bool:
        """Stop the job, which is reported as cancelled unless it has finished otherwise."""
        stops = self._run.cancel(reason)
        if self._run.items is not None:
            self._run.items.cancel()
        if self._ways.progress is not None:
            self._ways.progress.cancel()
        return stops

    async def see_through(self) -> None:
        """Run the job, and deliver its report."""
        self._ways.lines.say("Started.")
        try:
            report = await self._report()
        except asyncio.CancelledError:
            # The process stops without waiting any longer, most likely for the volume.
            self._counts.ended(failed=True)
            gone = Cancelled("the server stopped before the job was reported")
            left = JobReport(job_id=self.job.id, body=_failure(gone), cut_off=True)
            await self._reports.keep_for_next(left)
            raise
        self._counts.ended(failed=report.failed)
        await self._reports.deliver(report)
        self._ways.lines.say("Finished.")

    async def _report(self) -> JobReport:
        items, progress = self._run.items, self._ways.progress
        try:
            outcome = await self._run.outcome()
            self.ended = True
            self._freed()
            if items is not None:
                await items.close(self._run.at_most_s(_ITEMS_S))
                if items.lost:
                    outcome = self._run.without_items(outcome)
            if progress is not None:
                await progress.close(self._run.at_most_s(_PROGRESS_S))
            streamed = items is not None and items.any
            spill_s = max(self._run.at_most_s(_SPILL_S), _LEAST_SPILL_S)
            report = await self._results.report(
                self.job.id, outcome, streamed=streamed, spill_s=spill_s
            )
            # A job that had finished before, in any way, was not cut off.
            cut_off = self._was_cut_off and outcome.error_type == "Cancelled"
            return replace(report, cut_off=cut_off and not outcome.from_user)
        except Exception as error:  # noqa: BLE001 - a bug of flashpool must not lose the job
            _log.exception("Job %s: its outcome cannot be reported", self.job.id)
            ours = FlashpoolError(f"the server failed: {type(error).__name__}: {error}")
            return JobReport(job_id=self.job.id, body=_failure(ours), failed=True)
        finally:
            self.ended = True


def _failure(error: FlashpoolError) -> bytes:
    """Return the body of a report, built only with code that cannot fail."""
    name = type(error).__name__
    output = {"success": False, "result": None, "stdout": "", "error_type": name}
    return msgspec.json.encode({"output": output, "error": f"{name}: {error.message}"})


def report_limit(settings: Settings) -> int:
    """Return the most bytes of a report."""
    return settings.job_result_limit_mb * 1_000_000


def result_limit(settings: Settings) -> int:
    """Return the most bytes of an encoded result, in a report or written to the volume."""
    if settings.result_spill and spill_folder(settings) is not None:
        return settings.spill_limit_mb * 1024 * 1024
    return report_limit(settings) - _RESERVE


def result_setting(settings: Settings) -> str:
    """Return the setting that sets `result_limit`."""
    if settings.result_spill and spill_folder(settings) is not None:
        return "FLASHPOOL_SPILL_LIMIT_MB"
    return "FLASHPOOL_JOB_RESULT_LIMIT_MB"


def spill_of(settings: Settings) -> Spill | None:
    """Return the folder of large results; None if they are not written to a volume."""
    if not settings.result_spill:
        return None
    folder = spill_folder(settings)
    if folder is None:
        _log.warning("FLASHPOOL_RESULT_SPILL has no effect: there is no volume (FLASHPOOL_VOLUME)")
        return None
    return Spill(folder, settings.spill_keep_s)
