"""Delivers reports: posts each until the platform accepts it, and keeps it on disk meanwhile.

    deliver --> post --accepted--> done
                 |  refused, unreachable
                 v
               disk --> pause (0.25 s .. 15 s) --> post --> ...     until `limit_s`
                          ^
                          `-- ends early when any other post is accepted: the platform is back

The report of a job that the platform no longer knows (410, or 404 repeatedly) is dropped; a report
that is too large is replaced by a shorter one. The next process of the same worker posts the
reports that wait when this process exits (`resume`).

The report that an earlier process left is final, even if the platform hands the job out again, with
one exception: a report that says only that the exit of that process cut the job off is withdrawn
(`gives_way`, `withdraw`), and the job runs.

The disk may hang; every wait for it is limited.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Container
from contextlib import AbstractContextManager
from functools import partial
from typing import Final

from flashpool.frontends.disk import Disk

from .outbox import JobReport, Outbox
from .platform_posts import UNKNOWN_LIMIT, PlatformPosts, Verdict
from .waiting import News

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 15.0
#: Seconds without an answer after which a report is written to disk.
_SLOW_S: Final = 2.0
#: Posts at once: when the platform is back, all waiting reports are due.
_AT_ONCE: Final = 16
#: Seconds beyond the limit after which the reports of other workers are deleted.
_FORGET_S: Final = 24 * 3600.0
#: Seconds that the disk may take: for one report, or for all after the drain; and at the start.
_DISK_S: Final = 5.0
_START_S: Final = 10.0
#: Most reports, and most bytes of reports, that may wait before no further job is taken.
_MOST: Final = 1000
_MOST_BYTES: Final = 256 * 1024 * 1024

#: Within this context, the heartbeat reports the job to the platform as in progress.
Named = Callable[[str], AbstractContextManager[None]]


class ReportDelivery:
    """All undelivered reports of one worker."""

    def __init__(
        self,
        posts: PlatformPosts,
        outbox: Outbox,
        limit_s: float,
        shrink: Callable[[JobReport], JobReport],
    ) -> None:
        self._posts = posts
        self._outbox = outbox
        self._limit_s = limit_s
        #: Returns a shorter report in place of one that is too large.
        self._shrink = shrink
        self._waiting: dict[str, JobReport] = {}
        #: Ids of jobs whose reports are on disk.
        self._kept: set[str] = set()
        #: Ids of jobs that have, or may have, an older report on disk.
        self._stale: set[str] = set()
        #: The error of the last failed write, which is logged once.
        self._disk_error = ""
        self._disk = Disk()
        #: By job: deliveries of reports that an earlier process left.
        self._resumed: dict[str, asyncio.Task[None]] = {}
        self._looking: set[asyncio.Task[None]] = set()
        self._gate = asyncio.Semaphore(_AT_ONCE)
        #: Notified when a post was accepted: the platform is back.
        self._taken = News()

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Return whether so many reports wait that no further job should be taken."""
        held = sum(len(report.body) for report in self._waiting.values())
        return len(self._waiting) >= _MOST or held >= _MOST_BYTES

    async def resume(self, named: Named, running: Container[str] = ()) -> None:
        """Deliver reports that an earlier process left, within ``named`` of each job's id.

        If the disk does not answer in time, this returns with an error in the log. Reports that are
        found later are delivered unless their jobs are ``running`` by then.
        """
        looking = asyncio.ensure_future(self._look(named, running))
        self._looking.add(looking)
        looking.add_done_callback(self._looking.discard)
        await asyncio.wait({looking}, timeout=_START_S)
        if not looking.done():
            _log.error(
                "Cannot look for results of an earlier process: the disk of %s has not "
                "responded within %g s; starting without them",
                self._outbox.folder,
                _START_S,
            )

    async def _look(self, named: Named, running: Container[str]) -> None:
        try:
            found = await self._disk.run(self._limit_s, self._left_over)
        except OSError as error:
            _log.error("Cannot look for results of an earlier process: %s", error)
            return
        if found:
            _log.info("%d results of an earlier process are posted again", len(found))
        for report in found:
            if report.job_id in self._waiting or report.job_id in running:
                self._stale.add(report.job_id)
                continue
            task = asyncio.ensure_future(self._go_on(report, named))
            self._resumed[report.job_id] = task
            task.add_done_callback(partial(self._forget, report.job_id))

    def _forget(self, job_id: str, _task: asyncio.Task[None]) -> None:
        del self._resumed[job_id]

    async def _go_on(self, report: JobReport, named: Named) -> None:
        with named(report.job_id):
            await self.deliver(report, kept=True)

    def _left_over(self) -> list[JobReport]:
        found = list(self._outbox.waiting(self._limit_s))
        # A process that resumes a report keeps the report for as long again.
        self._outbox.forget_others(2 * self._limit_s + _FORGET_S)
        return found

    def gives_way(self, job_id: str) -> bool:
        """Return whether the waiting report of this job does not prevent the job from running."""
        return job_id in self._resumed and self._waiting[job_id].cut_off

    async def withdraw(self, job_id: str) -> None:
        """Stop posting the job's report; it stays on disk until another replaces it."""
        if (task := self._resumed.get(job_id)) is not None:
            task.cancel()
            await asyncio.wait({task})
            self._stale.add(job_id)

    def post_now(self) -> None:
        """Post all waiting reports now."""
        self._taken.notify()

    async def close(self) -> None:
        """Leave the reports of an earlier process to the next process."""
        tasks = [*self._looking, *self._resumed.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def save(self) -> None:
        """Write all waiting reports to disk, before the process exits."""
        waiting = list(self._waiting.values())
        await asyncio.gather(*(self._keep(report, Verdict.UNREACHABLE) for report in waiting))
        if self._waiting:
            _log.warning(
                "Results that the platform did not accept: %d, of which on disk: %d",
                len(self._waiting),
                len(self._kept),
            )

    async def keep_for_next(self, report: JobReport) -> None:
        """Keep a report that the next process of this worker delivers."""
        self._waiting[report.job_id] = report
        await self._keep(report, Verdict.UNREACHABLE)

    async def deliver(self, report: JobReport, *, kept: bool = False) -> None:
        """Post a report; return when the platform has accepted it, or never will."""
        self._waiting[report.job_id] = report
        if kept:
            self._kept.add(report.job_id)
        try:
            await self._deliver(report)
        finally:
            # Do this first: a report that is being written right now is then dropped by its writer.
            del self._waiting[report.job_id]
            on_disk = report.job_id in self._kept | self._stale
            self._kept.discard(report.job_id)
        if on_disk:
            self._stale.discard(report.job_id)
            await self._drop(report.job_id)

    async def _deliver(self, report: JobReport) -> None:
        loop = asyncio.get_running_loop()
        end, pause, unknown = loop.time() + self._limit_s, _FIRST_PAUSE_S, 0
        while True:
            verdict = await self._offered(report)
            if verdict is Verdict.TAKEN:
                self.post_now()
                break
            unknown = unknown + 1 if verdict is Verdict.UNKNOWN else 0
            if verdict is Verdict.GONE or unknown >= UNKNOWN_LIMIT:
                _log.warning("Job %s: the platform rejects its result", report.job_id)
                break
            if loop.time() >= end:
                _log.error(
                    "Job %s: the platform did not accept its result in time, and it is lost",
                    report.job_id,
                )
                break
            if verdict is Verdict.TOO_LARGE:
                report = self._waiting[report.job_id] = self._shrink(report)
            await self._keep(report, verdict)
            await self._taken.wait(pause * random.uniform(0.8, 1.2))  # noqa: S311 - no secret
            pause = min(pause * 2, _LONGEST_PAUSE_S)

    async def _offered(self, report: JobReport) -> Verdict:
        """Post a report; write it to disk if the answer takes long."""
        posting = asyncio.ensure_future(self._post(report))
        try:
            await asyncio.wait({posting}, timeout=_SLOW_S)
            if not posting.done():
                await self._keep(report, Verdict.SILENT)
            return await posting
        finally:
            posting.cancel()

    async def _post(self, report: JobReport) -> Verdict:
        async with self._gate:
            verdict = await self._posts.report(report)
            if verdict is Verdict.UNREACHABLE:
                # Most often the kept connection had expired: try again without a pause.
                verdict = await self._posts.report(report)
            return verdict

    async def _keep(self, report: JobReport, verdict: Verdict) -> None:
        if report.job_id in self._kept:
            return
        try:
            await self._disk.run(_DISK_S, partial(self._keep_now, report))
        except OSError as error:
            if str(error) != self._disk_error:
                _log.error(
                    "Waiting results cannot be saved in %s: %s",
                    self._outbox.folder,
                    error,
                )
            self._disk_error = str(error)
            return
        self._disk_error = ""
        if report.job_id not in self._waiting:
            # The platform accepted the report meanwhile.
            await self._drop(report.job_id)
            return
        self._kept.add(report.job_id)
        _log.warning(
            "Job %s: the platform did not accept its result (%s); it is kept in %s and posted again",
            report.job_id,
            verdict.value,
            self._outbox.folder,
        )

    def _keep_now(self, report: JobReport) -> None:
        self._outbox.keep(report)
        if report.job_id not in self._waiting:
            # The write took so long that its caller, which would drop the file, no longer waits.
            self._outbox.drop(report.job_id)

    async def _drop(self, job_id: str) -> None:
        try:
            await self._disk.run(_DISK_S, partial(self._outbox.drop, job_id))
        except OSError as error:
            _log.warning("A report that was accepted may be posted again: %s", error)
