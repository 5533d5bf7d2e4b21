"""Stops workers and zygotes that should have exited, answered or started by now.

    a worker  that does not get ready, begin its call or exit, or closed its channel --> stop, kill
    a worker  that outlives SIGKILL while its zygote answers                         --> stuck
    a zygote  that does not start, answer or exit, is stopped, or whose guard stays  --> kill

A zygote is judged by whether it answers, never by whether a worker dies: no signal ends a process
that waits inside the kernel, so the zygote has done all that can be done.

Code that waits for a process waits for an event. The watchdog checks every second for processes
from which no event comes. If this process itself was suspended, as in a paused container, the
others may have been, too: the clock used here (`running_time`) does not count that time.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from flashpool.pool import exit_causes
from flashpool.pool._child import processes
from flashpool.pool.config import PoolConfig
from flashpool.pool.recorder import Recorder
from flashpool.pool.workers.poller import Clock
from flashpool.pool.workers.states import WorkerState, ZygoteState
from flashpool.pool.workers.worker import Worker
from flashpool.pool.workers.worker_set import WorkerSet
from flashpool.pool.workers.zygote import ZygoteProcess
from flashpool.pool.workers.zygote_set import ZygoteSet

#: A zygote that does not answer a request for so long is killed.
ANSWER_S: Final = 10.0
#: A zygote that was stopped from outside (SIGSTOP) for so long is killed.
STOPPED_S: Final = 4.0
#: Longest time from the SIGKILL of a zygote to its guard's exit.
KILLED_S: Final = 5.0
#: Longest time from a zygote's death to its guard's exit, and from the end of a busy worker's
#: channel to the report of its death.
HUNG_UP_S: Final = 1.0
#: A worker that has had its call for so long without starting user code is stopped or stuck.
BEGIN_S: Final = 10.0
#: After so long such a worker's state is checked: one that is stopped (SIGSTOP) is dropped at once.
LOOK_S: Final = 1.0
#: Time for a zygote to carry out a stop, beyond the grace.
STOP_MARGIN_S: Final = 5.0


class Watchdog:
    """Watches all zygotes and workers of a pool."""

    def __init__(
        self,
        config: PoolConfig,
        zygote_set: ZygoteSet,
        worker_set: WorkerSet,
        now: Clock,
        recorder: Recorder,
    ) -> None:
        self._recorder = recorder
        self._config = config
        self._zygote_set = zygote_set
        self._worker_set = worker_set
        self._now = now

    def check(self) -> None:
        """Stop every worker and zygote that is late. To be called about every second."""
        for worker in list(self._worker_set):
            check = self._check_worker if worker.status is None else self._check_left
            ends = partial(self._worker_set.failed, worker)
            with self._recorder.counted(f"a look at {worker!r}", ends):
                check(worker, self._now())
        for zygote in list(self._zygote_set):
            ends = partial(self._zygote_set.failed, zygote)
            with self._recorder.counted(f"a look at {zygote!r}", ends):
                self._check_zygote(zygote)

    # Workers.

    def _check_worker(self, worker: Worker, now: float) -> None:
        grace_s = self._config.grace_s
        if worker.state.now is WorkerState.PREPARING:
            if now - worker.since > worker.zygote.start_limit_s:
                self._worker_set.stop(worker, None, grace=grace_s, dump=True)
        elif worker.exiting_since is not None:
            self._check_ending(worker, now - worker.exiting_since)
        elif worker.hung_up_at is not None and now - worker.hung_up_at > HUNG_UP_S:
            # The worker closed its channel and lives, or has died and its zygote does not report
            # that: either way no result will come.
            self._worker_set.stop(worker, exit_causes.CHANNEL_CLOSED, grace=grace_s)
        elif (worker.running is not None or worker.loading) and not worker.doubted:
            self._check_beginning(worker, now - worker.fed_at)

    def _check_beginning(self, worker: Worker, since_s: float) -> None:
        if since_s > LOOK_S and not worker.looked_at:
            worker.looked_at = True
            worker.stopped = processes.state(worker.pid) == "T"
            if worker.stopped:
                self._stop_stopped_spares(worker.zygote)
        if since_s > BEGIN_S or worker.stopped:
            # The zygote knows whether user code began. If not, the call is tried elsewhere.
            worker.doubted = True
            worker.zygote.drop_worker(worker.pid)

    def _stop_stopped_spares(self, zygote: ZygoteProcess) -> None:
        """Kill spares that were stopped (SIGSTOP) from outside: where one worker is stopped, others
        may be, and calls must not discover that one by one.
        """
        for worker in self._worker_set.of(zygote):
            if worker.state.now is WorkerState.SPARE and processes.state(worker.pid) == "T":
                worker.stopped = True
                self._worker_set.stop(worker, None, grace=0.0)

    def _check_ending(self, worker: Worker, overdue_s: float) -> None:
        if not worker.stopping and overdue_s > self._config.grace_s:
            self._worker_set.stop(worker, None, grace=0.0)
        elif worker.stopping:
            self._check_killed(worker, overdue_s - STOP_MARGIN_S)

    def _check_left(self, worker: Worker, now: float) -> None:
        """Check a dead worker whose orphans are not gone."""
        self._check_killed(worker, now - worker.dead_since - self._config.grace_s - STOP_MARGIN_S)

    def _check_killed(self, worker: Worker, overdue_s: float) -> None:
        """Check a worker that is long overdue: the cause may be its zygote, or the kernel."""
        if overdue_s <= 0 or worker.stuck is not None:
            return
        if worker.zygote.ponged_at > self._now() - overdue_s:
            self._worker_set.is_stuck(worker)
        else:
            # A zygote that does not answer within `ANSWER_S` is killed.
            worker.zygote.ping(self._now())

    # Zygotes.

    def _check_zygote(self, zygote: ZygoteProcess) -> None:
        start_s = zygote.start_limit_s
        if zygote.hung_up_at is not None and self._age(zygote.hung_up_at) > HUNG_UP_S:
            # The zygote is dead, but its guard has not cleaned up and exited.
            zygote.kill_with_guard()
        if zygote.killed_at is not None and self._age(zygote.killed_at) > KILLED_S:
            # The zygote waits in the kernel, and its guard waits for the zygote. Once the guard has
            # exited, the zygote counts as gone.
            zygote.kill_with_guard()
            if zygote.cannot_exit:
                self._zygote_set.give_up(zygote)
                return
        if zygote.state.now is ZygoteState.EXITING:
            if self._age(zygote.exiting_at) > ANSWER_S:
                zygote.kill_with_guard()
        elif zygote.state.now is ZygoteState.STARTING:
            if zygote.killed_at is None and self._age(zygote.progress_at) > start_s:
                why = f"it did not come up within {start_s:g} s and was killed"
                zygote.kill(why, self._now())
        elif zygote.unanswered and self._age(zygote.answered_at) > ANSWER_S:
            zygote.kill(f"it did not answer for {ANSWER_S:g} s and was killed", self._now())
        self._check_stopped(zygote)

    def _check_stopped(self, zygote: ZygoteProcess) -> None:
        if zygote.state.now is ZygoteState.READY and zygote.pid is not None:
            pids = [zygote.pid]
        else:  # perhaps only the guard exists yet, or a process that helps with imports
            pids = [zygote.process.pid, *processes.descendants(zygote.process.pid)]
        if not any(processes.state(pid) == "T" for pid in pids):
            zygote.stopped_since = None
        elif zygote.stopped_since is None:
            zygote.stopped_since = self._now()
        elif self._age(zygote.stopped_since) > STOPPED_S:
            why = f"something outside stopped it (SIGSTOP) for {STOPPED_S:g} s, and it was killed"
            zygote.kill(why, self._now(), failed=False)

    def _age(self, at: float) -> float:
        return self._now() - at
