"""Calls whose function has returned and whose process still exits: threads, hooks, finalizers.

    RESULT, exiting -> begin --flushed--> exit_answer_s later: finish, naming what still runs
                         |                                                  |
                         |--done, or its death--> finish, if not            | the process continues,
                         |                        answered yet              v with its slot and GPUs
                         '-- exit_s later ------------------------> WorkerSet.stop, log, stats

Whatever is stopped at the limit is logged with the call's id and kept for the statistics.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Final

from flashpool.pool import exit_causes
from flashpool.pool._child import wire
from flashpool.pool.calls import Outcome
from flashpool.pool.config import PoolConfig
from flashpool.pool.recorder import Recorder
from flashpool.pool.workers.call_table import CallTable
from flashpool.pool.workers.poller import Clock
from flashpool.pool.workers.worker import ActiveCall, Worker
from flashpool.pool.workers.worker_set import WorkerSet

_log = logging.getLogger(__name__)

#: A worker itself reports what still runs when its answer is due, and abandons its threads at the
#: exit's limit. The supervisor waits this much longer, then acts.
MARGIN_S: Final = 0.1
#: Shown before a worker has reported what runs.
_FLUSHING: Final = "files"


class CallExit:
    """One call whose process is exiting."""

    __slots__ = ("bound", "due", "outcome", "running", "runs", "since", "worker")

    def __init__(self, worker: Worker, running: ActiveCall, outcome: Outcome, now: float) -> None:
        self.worker = worker
        self.running = running
        #: The call's outcome, to which warnings about the exit are added.
        self.outcome = outcome
        self.since = now
        #: What the exit is doing now, in words.
        self.runs = _FLUSHING
        #: Timers for the call's answer, and for the exit's limit.
        self.due: asyncio.TimerHandle | None = None
        self.bound: asyncio.TimerHandle | None = None

    def cancel_timers(self) -> None:
        """Cancel both timers."""
        for timer in (self.due, self.bound):
            if timer is not None:
                timer.cancel()


class Exits:
    """All calls of a pool whose processes are exiting."""

    def __init__(
        self,
        config: PoolConfig,
        *,
        worker_set: WorkerSet,
        calls: CallTable,
        recorder: Recorder,
        now: Clock,
        over: Callable[[Worker], None],
        ended: Callable[[], None],
    ) -> None:
        """``over``: called with a worker that only has to exit. ``ended``: called after each exit
        is over.
        """
        self._config = config
        self._worker_set = worker_set
        self._calls = calls
        self._recorder = recorder
        self._now = now
        self._over = over
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._by_worker: dict[int, CallExit] = {}

    def __len__(self) -> int:
        return len(self._by_worker)

    def __iter__(self) -> Iterator[CallExit]:
        return iter(self._by_worker.values())

    def begin(self, worker: Worker, running: ActiveCall, outcome: Outcome) -> None:
        """Begin the exit of a call whose function has returned, or raised."""
        running.cancel_timer()
        one = CallExit(worker, running, outcome, self._now())
        running.exiting = True
        self._by_worker[worker.id] = one
        bound_s = self._config.exit_s
        self._arm(one, bound_s + MARGIN_S, self._now() + bound_s + MARGIN_S)

    def _arm(self, one: CallExit, seconds: float, due: float) -> None:
        one.bound = self._loop.call_later(seconds, self._due, partial(self._bound, due=due), one)

    def _bound(self, one: CallExit, due: float) -> None:
        """Handle the limit's timer by the pool's clock, which does not count time in which this
        process was suspended.
        """
        if (left := due - self._calls.beat()) > 0.0:
            self._arm(one, left, due)
        else:
            self._too_long(one)

    def told(self, worker: Worker, frame: wire.Frame) -> None:
        """Record progress of an exit.

        Raises:
            BadFrame: the frame is malformed.
        """
        stage, runs, ended = wire.unpack_exit(frame.meta)
        one = self._by_worker.get(worker.id)
        if one is None:
            return
        one.runs = runs
        if stage == wire.FLUSHED and not one.running.call.awaits_exit:
            wait_s = self._config.exit_answer_s + MARGIN_S
            one.due = self._loop.call_later(wait_s, self._due, self._answer, one)
        elif stage == wire.ANSWER and not one.running.call.awaits_exit:
            self._answer(one)
        elif stage == wire.DONE:
            if ended:
                self._was_ended(one, ended)
            self._leave(one, f"{ended} were ended after" if ended else "")
            self._worker_set.leaves(worker)
            self._over(worker)

    def died(self, worker: Worker) -> None:
        """End the exit of a process that is dead, and may not have reported that it is done."""
        one = self._by_worker.get(worker.id)
        if one is None:
            return
        words = "lost" if worker.status is None else exit_causes.exit_words(worker.status)
        if worker.stopping:
            self._leave(one, f"{one.runs} were ended after")
        elif words == "clean":
            self._leave(one, "")  # a hook called ``os._exit`` on purpose
        else:
            self._was_ended(one, f"{one.runs} ({words})")
            self._leave(one, f"the exit was cut short ({words}) after")

    def answer_now(self, running: ActiveCall) -> None:
        """Answer now: the call has a result, and its process continues."""
        for one in list(self):
            if one.running is running:
                self._answer(one)

    def stop_all(self, reason: str) -> None:
        """Stop all exits now, and answer their calls."""
        for one in list(self):
            self._was_ended(one, f"{one.runs} ({reason})")
            self._finish(one, f"{one.runs} were ended: {reason}")
            self._end(one)

    # Ends.

    def _due(self, late: Callable[[CallExit], None], one: CallExit) -> None:
        """Run a timer's function; an error of flashpool in it is counted and stops the worker."""
        ends = partial(self._worker_set.failed, one.worker)
        with self._recorder.counted(f"a limit of the exit of call {one.running.id}", ends):
            late(one)

    def _answer(self, one: CallExit) -> None:
        """Answer while the exit goes on, and name what still runs."""
        left_s = max(0.0, one.since + self._config.exit_s - self._now())
        single = one.runs.startswith("1 ")
        runs, they = ("runs", "it has") if single else ("run", "they have")
        # Rounded down: the text must not promise more time than there is.
        self._finish(one, f"{one.runs} still {runs}; {they} {int(left_s * 10) / 10} s")

    def _finish(self, one: CallExit, note: str) -> None:
        running = one.running
        if running.done:
            return
        outcome, now = one.outcome, self._now()
        receipt = outcome.receipt._replace(
            exit_s=now - one.since, total_s=now - running.submitted_at
        )
        written = running.written
        output = written.value() if written is not None else b""
        warnings = outcome.warnings
        if note:
            line = b"[flashpool: %b]\n" % note.encode("utf-8", "backslashreplace")
            if output and not output.endswith(b"\n"):
                line = b"\n" + line
            if running.sink.wants_output:
                running.sink.output(line)
            output += line
            warnings = (*warnings, note)
        self._calls.finish(
            running.id, replace(outcome, receipt=receipt, output=output, warnings=warnings)
        )

    def _leave(self, one: CallExit, why: str) -> None:
        """Finish an exit that is over."""
        del self._by_worker[one.worker.id]
        one.running.exiting = False
        one.cancel_timers()
        self._finish(one, f"{why} {self._now() - one.since:.1f} s" if why else "")
        self._ended()

    def _too_long(self, one: CallExit) -> None:
        self._was_ended(one, one.runs)
        self._finish(one, f"{one.runs} were ended after {self._config.exit_s:g} s")
        self._end(one)

    def _end(self, one: CallExit) -> None:
        if not one.worker.stopping:
            self._worker_set.stop(one.worker, None, grace=self._config.grace_s)

    def _was_ended(self, one: CallExit, what: str) -> None:
        call, seconds = one.running, self._now() - one.since
        _log.warning(
            "Call %d (%s): after its function had returned, %s did not finish within %.1f "
            "s and were stopped with process %d. FLASHPOOL_EXIT_S (exit_s of Pool) sets "
            "this limit.",
            call.id,
            call.call.label,
            what,
            seconds,
            one.worker.pid,
        )
        self._recorder.exit_ended(call.id, call.call.label, what, seconds)
