"""What the loop runs jobs with: the runner, reports and admin listener; and `ActiveJob`, one job.

job --> run --> outcome --> items and progress are through --> report --> delivered
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

#: Seconds for posting a job's last items after its end, if the job's own limit leaves them.
_ITEMS_S: Final = 30.0
#: Seconds for posting progress that is under way.
_PROGRESS_S: Final = 2.0
#: Seconds for writing a result to the volume, and the least time for that.
_SPILL_S: Final = 600.0
_LEAST_SPILL_S: Final = 1.0
_RESERVE: Final = 64 * 1024


class QueueWorker:
    """Everything that outlives one job. Created on the loop that runs it."""

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
        """Returns before calls can run."""
        await self._runner.start()
        if self._admin is not None:
            await self._admin.start()
        await self.reports.resume(named, self.jobs)

    async def wait_ready(self) -> None:
        """Wait until jobs can run.

        Raises:
            EnvironmentStartFailed: they never will.
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
        """Return the number of jobs that have or need a slot; jobs that only wait to be reported do
        not.
        """
        return sum(not job.ended for job in self.jobs.values())

    def stats(self) -> JobsStats:
        """Return the counters for operators."""
        return self._counts.stats(len(self.reports))

    def concurrency(self, _current: int) -> int:
        """Return how many jobs there may be: the SDK's ``concurrency_modifier``.

        Raises:
            NothingRuns: none will ever run here.
        """
        active = self.active
        return active if self.reports.full else self._runner.room(active)

    def begin(self, job: Job, freed: Callable[[], None]) -> ActiveJob:
        """A job to see through; ``freed`` hears when its slot may be free."""
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
        """End it because this process stops."""
        self._was_cut_off = self.stop(reason)

    def stop(self, reason: str) -> bool:
        """Stop the job; it is reported as cancelled, unless it has ended otherwise."""
        stops = self._run.cancel(reason)
        if self._run.items is not None:
            self._run.items.cancel()
        if self._ways.progress is not None:
            self._ways.progress.cancel()
        return stops

    async def see_through(self) -> None:
        """Run it, and deliver its report."""
        self._ways.lines.say("Started.")
        try:
            report = await self._report()
        except asyncio.CancelledError:
            # The process stops, and waits no longer: for the volume, most likely.
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
            # A job that had already ended, in whatever way, was not cut off.
            cut_off = self._was_cut_off and outcome.error_type == "Cancelled"
            return replace(report, cut_off=cut_off and not outcome.from_user)
        except Exception as error:  # noqa: BLE001 - a mistake of ours must not lose the job
            _log.exception("Job %s: its outcome cannot be reported", self.job.id)
            ours = FlashpoolError(f"the server failed: {type(error).__name__}: {error}")
            return JobReport(job_id=self.job.id, body=_failure(ours), failed=True)
        finally:
            self.ended = True


def _failure(error: FlashpoolError) -> bytes:
    """A report that needs nothing which may fail."""
    name = type(error).__name__
    output = {"success": False, "result": None, "stdout": "", "error_type": name}
    return msgspec.json.encode({"output": output, "error": f"{name}: {error.message}"})


def report_limit(settings: Settings) -> int:
    """Bytes of a report."""
    return settings.job_result_limit_mb * 1_000_000


def result_limit(settings: Settings) -> int:
    """Bytes of an encoded result: what fits into a report, or is written to the volume."""
    if settings.result_spill and spill_folder(settings) is not None:
        return settings.spill_limit_mb * 1024 * 1024
    return report_limit(settings) - _RESERVE


def result_setting(settings: Settings) -> str:
    """The setting that `result_limit` follows from."""
    if settings.result_spill and spill_folder(settings) is not None:
        return "FLASHPOOL_SPILL_LIMIT_MB"
    return "FLASHPOOL_JOB_RESULT_LIMIT_MB"


def spill_of(settings: Settings) -> Spill | None:
    """Return where large results are written, if they may be."""
    if not settings.result_spill:
        return None
    folder = spill_folder(settings)
    if folder is None:
        _log.warning("FLASHPOOL_RESULT_SPILL has no effect: there is no volume (FLASHPOOL_VOLUME)")
        return None
    return Spill(folder, settings.spill_keep_s)
