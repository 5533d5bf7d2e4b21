"""The calls that were accepted and have not finished: their limits, attempts and outcomes.

    accept -> waits ----> handed_over ----> finish -> sink, recorder
               | too long      | ran too long, used too much: WorkerSet.stop
               '-> finish      '-> again (its worker died before it began) -> waits

Every call ends in `finish`. Events for a finished call are ignored.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from flashpool.pool import call_ids, exit_causes
from flashpool.pool.call_history import CallHistory
from flashpool.pool.calls import Call, CallLimits, Outcome, Sink
from flashpool.pool.config import PoolConfig
from flashpool.pool.exit_causes import Stop
from flashpool.pool.recorder import Recorder
from flashpool.pool.scheduling.commands import ZygoteKey
from flashpool.pool.scheduling.scheduler import Scheduler

from .ends import outcomes
from .ends.memory import MemoryLimit, MemoryWatch
from .poller import Clock
from .worker import ActiveCall
from .worker_set import WorkerSet


class CallTable:
    """All calls of a pool that have not finished."""

    def __init__(
        self,
        config: PoolConfig,
        *,
        scheduler: Scheduler,
        worker_set: WorkerSet,
        recorder: Recorder,
        now: Clock,
        beat: Clock,
        ended: Callable[[], None],
    ) -> None:
        self._config = config
        self._scheduler = scheduler
        self._worker_set = worker_set
        self._recorder = recorder
        self._loop = asyncio.get_running_loop()
        self._now = now
        #: The clock for limits, which does not count time in which this process was suspended.
        self.beat = beat
        #: Called after a call without a worker has finished; and after every call while a caller
        #: waits for the last.
        self._ended = ended
        self.awaited = False
        self._defaults = CallLimits(
            run_s=config.call_timeout_s,
            queue_s=config.queue_timeout_s,
            memory_mb=config.memory_mb,
        )
        #: Cache: the limits of the latest call, before and after the defaults are applied. Most
        #: calls have the same.
        self._usual = self._defaults, self._defaults
        #: Oldest first.
        self._calls: dict[int, ActiveCall] = {}
        self.by_id: Mapping[int, ActiveCall] = MappingProxyType(self._calls)
        self.memory_watch = MemoryWatch(recorder)
        self.history = CallHistory()
        self._remember = self.history.recent.append

    def __len__(self) -> int:
        return len(self._calls)

    def __getitem__(self, call_id: int) -> ActiveCall:
        return self._calls[call_id]

    def get(self, call_id: int) -> ActiveCall | None:
        """Return the call; None if it has finished."""
        return self._calls.get(call_id)

    # Moves.

    def new_id(self) -> int:
        """Return a number that no other call has."""
        return next(call_ids.numbers)

    def accept(
        self, call: Call, sink: Sink, key: ZygoteKey, call_id: int | None = None
    ) -> ActiveCall:
        """Add a call that has no worker yet; if ``call_id`` is None, give the call an id."""
        if call_id is None:
            call_id = next(call_ids.numbers)
        if call.limits is not self._usual[0]:
            self._usual = call.limits, call.limits.or_else(self._defaults)
        running = ActiveCall(call_id, call, sink, key, self._usual[1], self._now())
        self._calls[call_id] = running
        return running

    def refuse(self, call_id: int, *, full: bool = False) -> None:
        """Remove a call that was not accepted; its sink is not notified. Only a full queue is
        counted.
        """
        call = self._calls.pop(call_id)
        if full:
            waits_for = "slot" if call.call.want is None else "instance"
            self._recorder.refused["gpu" if call.gpus_wanted else waits_for] += 1

    def waits(self, call_id: int) -> None:
        """Limit the wait of a call in the scheduler, unless a worker has the call already."""
        running = self._calls.get(call_id)
        if running is not None and running.worker is None:
            self.limit(running, running.limits.queue_s, self._queued_too_long, call_id)

    def limit(
        self, running: ActiveCall, seconds: float | None, late: Callable[[int], None], call_id: int
    ) -> None:
        """Restart the call's timer: ``late(call_id)`` runs after ``seconds``. None: no timer."""
        if running.timer is not None:
            running.cancel_timer()
        if seconds is not None:
            self._arm(running, seconds, self._now() + seconds, late)

    def _arm(
        self, running: ActiveCall, seconds: float, due: float, late: Callable[[int], None]
    ) -> None:
        running.timer = self._loop.call_later(seconds, self._due, running, due, late)

    def _due(self, running: ActiveCall, due: float, late: Callable[[int], None]) -> None:
        """Handle a timer by the pool's clock, which does not count time in which this process was
        suspended.
        """
        ends = partial(self.failed, running.id)
        with self._recorder.counted(f"a limit of call {running.id}", ends):
            left = due - self.beat()
            if left > 0.0:
                self._arm(running, left, due, late)
            else:
                late(running.id)

    def handed_over(self, running: ActiveCall) -> None:
        """Start the limits of a call that was given to a worker."""
        started = getattr(running.sink, "started", None)
        if started is not None:
            started()
        limits = running.limits
        if limits.run_s is not None or running.timer is not None:
            self.limit(running, limits.run_s, self._ran_too_long, running.id)
        if limits.soft_s is not None:
            self._arm_softly(running, limits.soft_s, self._now() + limits.soft_s)
        if limits.memory_mb is not None:
            self._limit_memory(running.id, running, limits.memory_mb)

    def again(self, call_id: int, key: ZygoteKey) -> None:
        """Return a call to the queue: its worker was lost."""
        running = self._calls[call_id]
        running.try_again()
        running.key = key

    def finish(self, call_id: int, outcome: Outcome) -> None:
        """Finish a call: the only place where a call gets its outcome."""
        running = self._calls.pop(call_id)
        running.done = True
        if running.timer is not None or running.soft_timer is not None:
            running.cancel_timer()
        if running.keeper is not None:
            running.keeper.withdraw(call_id, running)
        elif running.worker is None:
            self._scheduler.withdrawn(call_id)
        if running.worker is None:
            outcome = outcomes.unserved(running, outcome, self._now())
        if running.call.fds:
            running.close_fds()
        call = running.call
        self._recorder.ended(call_id, call.label, outcome)
        if outcome.output or outcome.error_type is not None:
            self.history.keep(call_id, call, outcome)
        else:
            name = None if call.want is None else call.want.instance
            self._remember(
                (call_id, call.request_id, call.label, name, outcome.receipt, time.time())
            )
        running.sink.done(outcome)
        if running.worker is None or self.awaited:
            self._ended()

    def cancel(self, call_id: int, reason: str, grace_s: float | None = None) -> None:
        """Cancel a call; its sink is notified at once, while its process tree is being stopped.

        The process has ``grace_s`` to exit; None: the pool's grace.
        """
        running = self._calls.get(call_id)
        if running is None:
            return
        if running.keeper is not None:
            running.keeper.cancel(call_id, running, reason)
        elif running.worker is not None and not running.worker.stopping:
            grace = self._config.grace_s if grace_s is None else grace_s
            self._worker_set.stop(running.worker, None, grace=grace)
        self.finish(call_id, outcomes.cancelled(running, reason, self._now()))

    def cancel_all(self, reason: str, grace_s: float) -> None:
        """Cancel all calls."""
        for call_id in list(self._calls):
            with self._recorder.counted(f"the end of call {call_id}"):
                self.cancel(call_id, reason, grace_s)

    async def close(self) -> None:
        """Stop measuring memory."""
        await self.memory_watch.close()

    # Limits.

    def failed(self, call_id: int, error: Exception) -> None:
        """Finish a call for which flashpool's own code raised this error."""
        running = self._calls.get(call_id)
        if running is None:
            return
        if running.worker is not None and not running.worker.stopping:
            self._worker_set.stop(running.worker, None, grace=0.0)
        cause = exit_causes.of_mistake(error)
        self.finish(call_id, outcomes.failed(running, cause, self._now(), None))

    def _queued_too_long(self, call_id: int) -> None:
        self.finish(call_id, outcomes.queued_too_long(self._calls[call_id], self._now()))

    def _ran_too_long(self, call_id: int) -> None:
        running = self._calls[call_id]
        worker = running.worker
        if worker is None:
            return
        # If this process was delayed, the result may have arrived in time.
        self._worker_set.catch_up(worker)
        limit = running.limits.run_s
        if not running.done and limit is not None and not worker.stopping:
            self._stop(call_id, outcomes.ran_too_long(limit), self._config.grace_s)

    def _arm_softly(self, running: ActiveCall, seconds: float, due: float) -> None:
        running.soft_timer = self._loop.call_later(seconds, self._ran_softly, running, due)

    def _ran_softly(self, running: ActiveCall, due: float) -> None:
        ends = partial(self.failed, running.id)
        with self._recorder.counted(f"the soft limit of call {running.id}", ends):
            if (left := due - self.beat()) > 0.0:
                self._arm_softly(running, left, due)
            elif running.worker is not None and not running.exiting:
                running.worker.zygote.soften_worker(running.worker.pid)

    def _stop(self, call_id: int, stop: Stop, grace: float) -> None:
        running = self._calls[call_id]
        if running.keeper is not None:
            running.keeper.stop(call_id, running, stop, grace=grace)
        elif running.worker is not None:
            self._worker_set.stop(running.worker, stop, grace=grace, dump=grace > 0)

    def _limit_memory(self, call_id: int, running: ActiveCall, limit_mb: int) -> None:
        worker = running.worker
        assert worker is not None

        def applies() -> bool:
            return not running.done and running.worker is worker and not worker.stopping

        def exceeded(used_bytes: int) -> None:
            self._stop(call_id, outcomes.used_too_much(limit_mb, used_bytes), 0.0)

        limit = MemoryLimit(pid=worker.pid, limit_mb=limit_mb, applies=applies, exceeded=exceeded)
        self.memory_watch.add(limit)
