"""The SDK's loop (`rp_scale.JobScaler`), with concurrent jobs that are all reported.

    take --> begin --> run (`job_run`) --> report (`delivery`) --> forget
     ^ as many as there are free slots        ^ the slot is free by now
    stop  --> the run is cancelled, and reported
    SIGTERM --> take no more --> wait for poll and jobs --> cancel the remaining jobs --> exit

This subclass keeps the SDK's session, heartbeat and stop channel, and its record of jobs in
progress, which the heartbeat reports. The subclass replaces `get_jobs` and `run_jobs`: the SDK's
methods check their state every 0.1 to 1 s, change their concurrency only while idle, and drop a job
that arrives after the stop signal.

A poll that is in progress at the signal is not aborted: the platform may be about to answer, and
considers the jobs of its answer as given. The poll ends by itself, or with the drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

import aiohttp
from runpod.serverless.modules import rp_job, rp_scale, worker_state
from runpod.serverless.utils import rp_debugger

from flashpool.frontends.server_process import run_loop, stop_signals
from flashpool.frontends.shutdown import words_for_cancelled

from .heartbeat import Heartbeat
from .jobs import Job, NothingRuns
from .polling import Taken, Taker
from .waiting import News, within
from .worker import ActiveJob, QueueWorker

_log = logging.getLogger(__name__)

#: Seconds between checks for a slot that processes of finished jobs still hold.
_LOOK_S: Final = 0.05
#: Seconds for which a stop request waits for its job: they arrive over different connections.
_EARLY_S: Final = 5.0
_STOPPED: Final = "the platform stopped the job"
#: Share of the drain after which all jobs are stopped; and the part of it for reporting cancelled
#: jobs, in seconds at most and as a share.
_DRAIN_SHARE: Final = 0.9
_REPORT_S: Final = 2.0
_REPORT_SHARE: Final = 0.2
#: Further seconds for a poll whose answer has begun to arrive.
_ANSWER_S: Final = 1.0
#: Seconds for reporting cancelled jobs in any case, even without a drain.
_LEAST_REPORT_S: Final = 1.0


class JobLoop(rp_scale.JobScaler):  # type: ignore[misc]
    """Takes jobs, runs them, and delivers their reports."""

    def __init__(
        self,
        config: dict[str, Any],
        *,
        make: Callable[[], QueueWorker],
        drain_s: float,
        heartbeat: Heartbeat,
    ) -> None:
        super().__init__(config)
        self._make = make
        self._drain_s = drain_s
        self._heartbeat = heartbeat
        self._taker = Taker(rp_job._job_get_url)
        self._polling: asyncio.Task[Taken] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        #: Times of stop requests for unknown jobs, which a poll may be about to bring.
        self._early_stops: dict[str, float] = {}
        self._draining = asyncio.Event()
        self._second_signal = asyncio.Event()
        #: Notified when there may be room for a job, or no room is left.
        self._changed = News()
        #: Set when no job is taken any more.
        self._took_last = asyncio.Event()
        self._drained = asyncio.Event()
        self._failure: Exception | None = None
        #: Why remaining jobs are cancelled, once that has begun.
        self._cancel_reason = ""

    def start(self) -> None:
        """Run until a signal; return when all jobs are reported and the pool has stopped."""
        run_loop(self.run())

    async def run(self) -> None:
        """Run the SDK's loop, with the pool around it."""
        self._loop = asyncio.get_running_loop()
        signals = stop_signals()
        for signum in signals:
            signal.signal(signum, self.handle_shutdown)
        self._worker = self._make()
        if self.config.get("rp_args", {}).get("rp_debugger"):
            self._worker.results.more = self._debugger
        beat = asyncio.ensure_future(self._heartbeat.keep())
        try:
            await self._worker.start(self._named)
            await super().run()
        finally:
            beat.cancel()
            await self._worker.stop("the server stops")
            # A later signal would find no loop, and change the exit status.
            for signum in signals:
                signal.signal(signum, signal.SIG_IGN)
        if self._failure is not None:
            raise self._failure

    def _debugger(self) -> dict[str, Any]:
        """Return the SDK's output for ``--rp_debugger``, about this process and not its calls."""
        found = dict(rp_debugger.get_debugger_output())
        ready_s = self.config["reference_counter_start"] - worker_state.REF_COUNT_ZERO
        return {"rp_debugger": {**found, "ready_delay_ms": ready_s * 1000}}

    # Signals.

    def handle_shutdown(self, signum: int, frame: FrameType | None) -> None:
        """Begin the drain at the first signal; end the drain at the second."""
        self._loop.call_soon_threadsafe(self._on_signal, signal.Signals(signum).name)

    def _on_signal(self, name: str) -> None:
        if not self._draining.is_set():
            count = len(self._worker.jobs)
            _log.info(
                "%s: draining for at most %g s; jobs to finish: %d", name, self._drain_s, count
            )
            self._draining.set()
        else:
            _log.info("%s again: stopping at once", name)
            self._second_signal.set()
        self._changed.notify()

    # Taking.

    async def get_jobs(self, session: aiohttp.ClientSession) -> None:
        """Poll while there is room, until the drain begins."""
        await self._ready()
        try:
            while (room := await self._room()) > 0:
                await self._poll(session, room)
        except NothingRuns as error:
            self._failure = error
            self._draining.set()
        except Exception as error:  # noqa: BLE001 - running jobs must be reported
            _log.exception("Taking jobs failed; stopping")
            self._failure = error
            self._draining.set()
        finally:
            self._took_last.set()
            self._changed.notify()

    async def _poll(self, session: aiohttp.ClientSession, room: int) -> None:
        self._polling = asyncio.ensure_future(self._taker.take(session, room))
        try:
            taken = await self._polling
        except asyncio.CancelledError:
            if not self._draining.is_set():
                raise
            return
        finally:
            self._polling = None
        for job in taken.jobs:
            self._begin(job)
        if taken.pause_s:
            await within(self._draining.wait(), taken.pause_s)

    async def _ready(self) -> None:
        ready = asyncio.ensure_future(self._worker.wait_ready())
        draining = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait({ready, draining}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                ready.result()
        finally:
            ready.cancel()
            draining.cancel()

    async def _room(self) -> int:
        """Wait for room, and return how many jobs to ask for; 0 once the drain has begun."""
        while not self._draining.is_set():
            await self.set_scale()
            room = self.current_concurrency - self._worker.active
            if room > 0:
                return room
            # A slot becomes free some time after its job has finished, without a notification.
            await self._changed.wait(_LOOK_S)
        return 0

    #: How many jobs there may be; the SDK uses this name.
    current_concurrency: int

    async def set_scale(self) -> None:
        """Update how many jobs there may be; unlike the SDK's, also while jobs are in progress."""
        self.current_concurrency = self.concurrency_modifier(self.current_concurrency)

    def _begin(self, job: Job) -> None:
        reports, in_progress = self._worker.reports, job.id in self._worker.jobs
        waits = job.id in reports
        if waits and (in_progress or self._cancel_reason or not reports.gives_way(job.id)):
            _log.warning("Job %s: received again while its result waits for the platform", job.id)
            reports.post_now()
        elif in_progress:
            _log.warning("Job %s: received again while it is in progress; it runs once", job.id)
        else:
            running = self._worker.begin(job, self._changed.notify)
            task = asyncio.ensure_future(self._see_through(running))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            if self._loop.time() - self._early_stops.pop(job.id, float("-inf")) < _EARLY_S:
                running.stop(_STOPPED)
            if self._cancel_reason:
                # The answer had begun to arrive when the poll was aborted.
                running.cut_off(self._cancel_reason)

    async def _see_through(self, running: ActiveJob) -> None:
        try:
            # Do this first: it removes the job's name from the record of jobs in progress.
            await self._worker.reports.withdraw(running.job.id)
            with self._named(running.job.id):
                await running.see_through()
        finally:
            del self._worker.jobs[running.job.id]
            self._changed.notify()

    @contextlib.contextmanager
    def _named(self, job_id: str) -> Iterator[None]:
        self.job_progress.add(job_id)
        try:
            yield
        finally:
            self.job_progress.remove(job_id)

    # Stopping a job.

    async def monitor_stop_signals(self, session: aiohttp.ClientSession) -> None:
        """Run the SDK's monitor until the drain is over."""
        watching = asyncio.ensure_future(super().monitor_stop_signals(session))
        drained = asyncio.ensure_future(self._drained.wait())
        try:
            await asyncio.wait({watching, drained}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done() and not watching.cancelled() and (error := watching.exception()):
                _log.error("Stop requests of the platform are no longer received: %s", error)
            await drained
        finally:
            watching.cancel()
            drained.cancel()

    async def stop_job(self, job_id: str) -> bool:
        """Handle the platform's stop request; return whether the job is here."""
        running = self._worker.jobs.get(job_id)
        if running is None:
            now = self._loop.time()
            self._early_stops = {
                name: at for name, at in self._early_stops.items() if now - at < _EARLY_S
            }
            self._early_stops[job_id] = now
            return False
        _log.info("Job %s: stopped by the platform", job_id)
        running.stop(_STOPPED)
        return True

    # The drain.

    async def run_jobs(self, session: aiohttp.ClientSession) -> None:
        """Wait for the drain, and let every job that was taken be reported."""
        await self._draining.wait()
        end = self._loop.time() + self._drain_s * _DRAIN_SHARE
        try:
            await self._idle(end - min(_REPORT_S, _REPORT_SHARE * self._drain_s))
            await self._break_off()
            await self._idle(max(end, self._loop.time() + _LEAST_REPORT_S))
            await self._worker.reports.save()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            self._drained.set()

    async def _break_off(self) -> None:
        """Cancel the remaining jobs, which are then reported as cancelled, and the poll."""
        self._cancel_reason = words_for_cancelled("job", self._second_signal)
        self._second_signal.clear()
        for running in list(self._worker.jobs.values()):
            running.cut_off(self._cancel_reason)
        if self._taker.receiving:
            # The platform considers these jobs given: wait a moment, so that they can be reported.
            await within(self._took_last.wait(), _ANSWER_S)
        if self._polling is not None:
            self._polling.cancel()

    async def _idle(self, end: float) -> None:
        """Wait until no poll and no job is left, the time is up, or a second signal arrives."""
        while (
            not (self._took_last.is_set() and not self._worker.jobs)
            and not self._second_signal.is_set()
        ):
            left = end - self._loop.time()
            if left <= 0:
                return
            await self._changed.wait(left)
