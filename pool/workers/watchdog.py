"""Ends what should have ended, answered or come up by now.

    a worker  that does not get ready, end, begin with its call, or say why it hung up --> stop, kill
    a zygote  that does not come up, answer or leave, or is dead below a guard         --> kill

All that waits for a process waits for an event of it. Here is looked at, every second, what
became of those from which none comes. Where this process itself stood still, as in a container
that is paused, the others may have too: by the clock here (`running_time`) that is no time.
"""

from __future__ import annotations

from typing import Final

from flashpool.pool import exit_causes
from flashpool.pool.config import PoolConfig

from .poller import Clock
from .states import WorkerState, ZygoteState
from .worker import Worker
from .worker_set import WorkerSet
from .zygote_set import ZygoteSet

#: A zygote that leaves a request unanswered this long is taken for stopped, and killed.
ANSWER_S: Final = 10.0
#: From a zygote's death to its guard's exit, and from the end of a busy worker's channel to the
#: report of its death, at most.
HUNG_UP_S: Final = 1.0
#: A worker that has its call, and no user code running, this long is stopped or stuck.
BEGIN_S: Final = 10.0
#: Beyond a stop's grace, the time its zygote has to carry it out.
STOP_MARGIN_S: Final = 5.0


class Watchdog:
    """Looks at all zygotes and workers of a pool."""

    def __init__(
        self, config: PoolConfig, zygote_set: ZygoteSet, worker_set: WorkerSet, now: Clock
    ) -> None:
        self._config = config
        self._zygote_set = zygote_set
        self._worker_set = worker_set
        self._now = now

    def check(self) -> None:
        """End those that are late. Call it every second or so."""
        for worker in list(self._worker_set):
            if worker.status is None:
                self._check_worker(worker, self._now())
        self._check_zygotes()

    # Workers.

    def _check_worker(self, worker: Worker, now: float) -> None:
        grace_s = self._config.grace_s
        if worker.state.now is WorkerState.PREPARING:
            if now - worker.since > self._config.start_timeout_s:
                self._worker_set.stop(worker, None, grace=grace_s, dump=True)
        elif worker.exiting_since is not None:
            self._check_ending(worker, now - worker.exiting_since)
        elif worker.hung_up_at is not None and now - worker.hung_up_at > HUNG_UP_S:
            # It closed its channel and lives, or it died and its zygote does not say so:
            # either way its call has no result to wait for.
            self._worker_set.stop(worker, exit_causes.CHANNEL_CLOSED, grace=grace_s)
        elif (
            (worker.running is not None or worker.loading)
            and not worker.doubted
            and now - worker.fed_at > BEGIN_S
        ):
            # Its zygote knows whether it began. If not, the call is tried elsewhere.
            worker.doubted = True
            worker.zygote.drop_worker(worker.pid)

    def _check_ending(self, worker: Worker, overdue_s: float) -> None:
        if not worker.stopping and overdue_s > self._config.grace_s:
            self._worker_set.stop(worker, None, grace=0.0)
        elif worker.stopping and overdue_s > STOP_MARGIN_S:
            worker.zygote.kill(f"it did not end worker {worker.pid} and was killed")

    # Zygotes.

    def _check_zygotes(self) -> None:
        start_s = self._config.start_timeout_s
        for zygote in self._zygote_set:
            if zygote.hung_up_at is not None and self._age(zygote.hung_up_at) > HUNG_UP_S:
                # It is dead, and its guard, which should have cleaned up and left, has not.
                zygote.kill_with_guard()
            if zygote.state.now is ZygoteState.EXITING:
                if self._age(zygote.exiting_at) > ANSWER_S:
                    zygote.kill_with_guard()
            elif zygote.state.now is ZygoteState.STARTING:
                if self._age(zygote.progress_at) > start_s:
                    zygote.kill(f"it did not come up within {start_s:g} s and was killed")
            elif zygote.unanswered and self._age(zygote.answered_at) > ANSWER_S:
                zygote.kill(f"it did not answer for {ANSWER_S:g} s and was killed")

    def _age(self, at: float) -> float:
        return self._now() - at
