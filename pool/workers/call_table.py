"""The calls that were accepted and have not ended: their limits, attempts and ends.

    accept -> waits ----> handed_over ----> finish -> sink, recorder
               | too long      | ran too long, used too much: WorkerSet.stop
               '-> finish      '-> again (its worker died before it began) -> waits

One call ends in one place, `finish`: what comes for it later is ignored.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Protocol

from flashpool.pool.calls import Call, CallLimits, Outcome, Sink
from flashpool.pool.config import PoolConfig
from flashpool.pool.exit_causes import Stop
from flashpool.pool.scheduling.commands import ZygoteKey
from flashpool.pool.scheduling.scheduler import Scheduler
from flashpool.pool.stats import Recorder

from . import outcomes
from .memory import Measures, used
from .worker import ActiveCall, Worker
from .worker_set import WorkerSet
from .zygote_set import Clock

#: Between looks at the memory of calls that have a limit.
_MEMORY_LOOK_S: Final = 0.05


class Staying(Protocol):
    """What becomes of calls of instances, whose workers live on (`residents.runner`)."""

    def withdraw(self, call_id: int, running: ActiveCall) -> None:
        """One that may not have begun has ended."""

    def cancel(self, call_id: int, running: ActiveCall, reason: str) -> None:
        """Nobody waits for it any more."""

    def stop(self, call_id: int, running: ActiveCall, stop: Stop, *, grace: float) -> None:
        """It went too far."""


class CallTable:
    """All calls of a pool that have not ended."""

    def __init__(
        self,
        config: PoolConfig,
        *,
        scheduler: Scheduler,
        worker_set: WorkerSet,
        recorder: Recorder,
        now: Clock,
        ended: Callable[[], None],
    ) -> None:
        self._config = config
        self._scheduler = scheduler
        self._worker_set = worker_set
        self._recorder = recorder
        self._loop = asyncio.get_running_loop()
        self._now = now
        #: Told after each end.
        self._ended = ended
        self._defaults = CallLimits(
            run_s=config.call_timeout_s,
            queue_s=config.queue_timeout_s,
            memory_mb=config.memory_mb,
        )
        #: The limits of the latest call, and what they come to: most calls have the same.
        self._usual = self._defaults, self._defaults
        self._ids = itertools.count(1)
        self._calls: dict[int, ActiveCall] = {}
        #: Running calls that have a memory limit.
        self._limited: set[int] = set()
        self._looking: asyncio.TimerHandle | None = None
        self.measures = Measures()
        self.residents: Staying

    def __len__(self) -> int:
        return len(self._calls)

    def __getitem__(self, call_id: int) -> ActiveCall:
        return self._calls[call_id]

    @property
    def by_id(self) -> Mapping[int, ActiveCall]:
        """All of them, oldest first."""
        return MappingProxyType(self._calls)

    def get(self, call_id: int) -> ActiveCall | None:
        """The call, unless it has ended."""
        return self._calls.get(call_id)

    # Moves.

    def new_id(self) -> int:
        """A number that no other call has."""
        return next(self._ids)

    def accept(self, call: Call, sink: Sink, key: ZygoteKey, call_id: int | None = None) -> int:
        """It has an id, a new one unless it brings one, and no worker yet."""
        if call_id is None:
            call_id = self.new_id()
        if call.limits is not self._usual[0]:
            self._usual = call.limits, call.limits.or_else(self._defaults)
        self._calls[call_id] = ActiveCall(call, sink, key, self._usual[1], self._now())
        return call_id

    def refuse(self, call_id: int, *, full: bool = False) -> None:
        """It was not accepted after all; its sink hears nothing. Only a full queue counts."""
        del self._calls[call_id]
        self._recorder.refused += full

    def waits(self, call_id: int) -> None:
        """It was offered to the scheduler: limit its wait, if it has not begun or ended."""
        running = self._calls.get(call_id)
        if running is not None and running.worker is None:
            self.limit(running, running.limits.queue_s, self._queued_too_long, call_id)

    def limit(
        self, running: ActiveCall, seconds: float | None, late: Callable[[int], None], call_id: int
    ) -> None:
        """Have this told of it after so many seconds, in place of what was to be told before."""
        if running.timer is not None:
            running.cancel_timer()
        if seconds is not None:
            running.timer = self._loop.call_later(seconds, late, call_id)

    def handed_over(self, call_id: int) -> None:
        """A worker has it: its limits run from now on."""
        running = self._calls[call_id]
        started = getattr(running.sink, "started", None)
        if started is not None:
            started()
        limits = running.limits
        self.limit(running, limits.run_s, self._ran_too_long, call_id)
        if limits.memory_mb is not None:
            self._limited.add(call_id)
            self._watch_memory()

    def again(self, call_id: int, key: ZygoteKey) -> None:
        """Its worker is lost, and it goes back to the queue."""
        running = self._calls[call_id]
        running.try_again()
        running.key = key
        self._limited.discard(call_id)

    def finish(self, call_id: int, outcome: Outcome) -> None:
        """The one place where a call ends."""
        running = self._calls.pop(call_id)
        running.done = True
        running.cancel_timer()
        self._limited.discard(call_id)
        if running.call.want is not None:
            self.residents.withdraw(call_id, running)
        elif running.worker is None:
            self._scheduler.withdrawn(call_id)
        if running.worker is None:
            outcome = outcomes.unserved(running, outcome, self._now())
        running.close_fds()
        self._recorder.ended(running.call.label, outcome)
        running.sink.done(outcome)
        self._ended()

    def cancel(self, call_id: int, reason: str) -> None:
        """End it; its sink hears of it at once, its process tree goes meanwhile."""
        running = self._calls.get(call_id)
        if running is None:
            return
        if running.call.want is not None:
            self.residents.cancel(call_id, running, reason)
        elif running.worker is not None and not running.worker.stopping:
            self._worker_set.stop(running.worker, None, grace=self._config.grace_s)
        self.finish(call_id, outcomes.cancelled(running, reason, self._now()))

    def cancel_all(self, reason: str) -> None:
        """End all of them."""
        for call_id in list(self._calls):
            self.cancel(call_id, reason)

    async def close(self) -> None:
        """Look at nothing any more."""
        if self._looking is not None:
            self._looking.cancel()
        await self.measures.close()

    # Limits.

    def _queued_too_long(self, call_id: int) -> None:
        self.finish(call_id, outcomes.queued_too_long(self._calls[call_id], self._now()))

    def _ran_too_long(self, call_id: int) -> None:
        running = self._calls[call_id]
        worker = running.worker
        if worker is None:
            return
        # Its result may be here, if it was this process that was held up.
        self._worker_set.catch_up(worker)
        limit = running.limits.run_s
        if not running.done and limit is not None and not worker.stopping:
            self._stop(call_id, outcomes.ran_too_long(limit), self._config.grace_s)

    def _stop(self, call_id: int, stop: Stop, grace: float) -> None:
        running = self._calls[call_id]
        if running.call.want is not None:
            self.residents.stop(call_id, running, stop, grace=grace)
        elif running.worker is not None:
            self._worker_set.stop(running.worker, stop, grace=grace, dump=grace > 0)

    def _watch_memory(self) -> None:
        """Look at it again soon, while there is a call that has a limit."""
        if self._limited and self._looking is None:
            self._looking = self._loop.call_later(_MEMORY_LOOK_S, self._look_at_memory)

    def _look_at_memory(self) -> None:
        self._looking = None
        self._watch_memory()
        for call_id in list(self._limited):
            running = self._calls[call_id]
            if running.limits.memory_mb is not None and running.worker is not None:
                self._limit_memory(call_id, running.worker, running.limits.memory_mb)

    def _limit_memory(self, call_id: int, worker: Worker, limit_mb: int) -> None:
        if worker.stopping or used(worker.pid) <= limit_mb << 20:
            return

        def told(measured: int) -> None:
            running = self._calls.get(call_id)
            gone = running is None or running.worker is not worker or worker.stopping
            if measured > limit_mb << 20 and not gone:
                self._stop(call_id, outcomes.used_too_much(limit_mb, measured), 0.0)

        self.measures.ask(worker.pid, call_id, told)
