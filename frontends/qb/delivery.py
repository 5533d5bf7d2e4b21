"""Delivery of reports: each is offered until the platform takes it, and is on disk meanwhile.

    deliver --> post --taken--> done
                 |  refused, unreachable
                 v
               disk --> pause (0.25 s .. 15 s) --> post --> ...     until `limit_s`
                          ^
                          `-- cut short when any other post is taken: the platform is back

A job the platform does not know any more (410, or 404 again and again) is let go; one whose
report is too large is told so instead. Whatever waits when the process exits is offered by
the next one of the same worker (`resume`).

What an earlier process has left is the end of its job, and stays so when the job is handed out
again, with one exception: a report that says only that the job was cut off because that process
left gives way (`gives_way`, `withdraw`), and the job runs.

The disk may hang; nothing here waits for it beyond a limit.
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
#: Seconds without an answer after which a report is written down.
_SLOW_S: Final = 2.0
#: Posts at once: when the platform is back, all that waits is due.
_AT_ONCE: Final = 16
#: Seconds beyond the limit after which other workers' reports are nobody's.
_FORGET_S: Final = 24 * 3600.0
#: Seconds that the disk may take: for one report, or all of them when the drain is over; and at
#: the start.
_DISK_S: Final = 5.0
_START_S: Final = 10.0
#: Reports, and bytes of them, that may wait; no job is taken beyond.
_MOST: Final = 1000
_MOST_BYTES: Final = 256 * 1024 * 1024

#: While this lasts, the heartbeat tells the platform that the job is in progress.
Named = Callable[[str], AbstractContextManager[None]]


class ReportDelivery:
    """All reports of one worker on their way."""

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
        #: Makes one in its place of a report that is too large.
        self._shrink = shrink
        self._waiting: dict[str, JobReport] = {}
        #: Those of them that are on disk.
        self._kept: set[str] = set()
        #: Jobs of which an older report is, or may be, on disk.
        self._stale: set[str] = set()
        #: What the last attempt to write one down failed with, told once.
        self._disk_error = ""
        self._disk = Disk()
        #: By job: the deliveries of what an earlier process has left.
        self._resumed: dict[str, asyncio.Task[None]] = {}
        self._looking: set[asyncio.Task[None]] = set()
        self._gate = asyncio.Semaphore(_AT_ONCE)
        #: A post was taken: the platform is back.
        self._taken = News()

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether no more work should be taken on."""
        held = sum(len(report.body) for report in self._waiting.values())
        return len(self._waiting) >= _MOST or held >= _MOST_BYTES

    async def resume(self, named: Named, running: Container[str] = ()) -> None:
        """Go on with what an earlier process has left; each job is ``named`` meanwhile.

        Of a disk that does not answer no more is heard here than that it is so; what it has to
        say later counts for jobs that are not ``running`` by then.
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
        # One that goes on with a report has it for as long again.
        self._outbox.forget_others(2 * self._limit_s + _FORGET_S)
        return found

    def gives_way(self, job_id: str) -> bool:
        """Whether what waits of this job is no reason not to run it."""
        return job_id in self._resumed and self._waiting[job_id].cut_off

    async def withdraw(self, job_id: str) -> None:
        """Offer what waits of it no more; on disk it stays until there is another report."""
        if (task := self._resumed.get(job_id)) is not None:
            task.cancel()
            await asyncio.wait({task})
            self._stale.add(job_id)

    def post_now(self) -> None:
        """Post what waits now."""
        self._taken.notify()

    async def close(self) -> None:
        """Leave what an earlier process had left to the next one."""
        tasks = [*self._looking, *self._resumed.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def save(self) -> None:
        """Have all that waits on disk, before the process exits."""
        waiting = list(self._waiting.values())
        await asyncio.gather(*(self._keep(report, Verdict.UNREACHABLE) for report in waiting))
        if self._waiting:
            _log.warning(
                "Results that the platform did not accept: %d, of which on disk: %d",
                len(self._waiting),
                len(self._kept),
            )

    async def keep_for_next(self, report: JobReport) -> None:
        """Have the next process of this worker deliver it."""
        self._waiting[report.job_id] = report
        await self._keep(report, Verdict.UNREACHABLE)

    async def deliver(self, report: JobReport, *, kept: bool = False) -> None:
        """Returns when it was taken, or cannot be."""
        self._waiting[report.job_id] = report
        if kept:
            self._kept.add(report.job_id)
        try:
            await self._deliver(report)
        finally:
            # First: one that is being written down at this moment is dropped by who writes it.
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
        """Post it; have it on disk if the answer takes its time."""
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
                # Most often a connection that was kept open for too long: not worth a pause.
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
            # It was taken meanwhile.
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
            # It took so long that nobody waits for this any more, to drop it.
            self._outbox.drop(report.job_id)

    async def _drop(self, job_id: str) -> None:
        try:
            await self._disk.run(_DISK_S, partial(self._outbox.drop, job_id))
        except OSError as error:
            _log.warning("A report that was accepted may be posted again: %s", error)
