"""One job, from its input to the outcome of its call; it always has one.

    Job --prepare--> call --submit--> pending --> Outcome
          BUILD              QUEUE       RUN
          `-------------------------------'
             cut: the platform's stop, or its time limit come near

The platform gives a job a time and then calls it TIMED_OUT, for which its client may wait for
ever. So a job has to be reported before: its call gets less time to run than that, and what
is not over shortly before the end is reported as a `Timeout` while its processes are ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from flashpool.frontends.call_handles import CallHandle
from flashpool.frontends.service import Service
from flashpool.frontends.settings.table import Settings
from flashpool.pool.calls import Call, Outcome, Phase, unprovided
from flashpool.pool.errors import (
    Cancelled,
    FlashpoolError,
    InvalidRequest,
    PayloadTooLarge,
    Timeout,
)
from flashpool.pool.progress_notes import ProgressNotes

from .jobs import Job
from .log_lines import LiveLines
from .results import of_error
from .streaming import JobItems, Progress

_log = logging.getLogger(__name__)

#: Of the platform's time: what is kept for reporting, and for ending the call before; at
#: most, and as a share of it.
_REPORT_S: Final = 2.0
_REPORT_SHARE: Final = 0.1
_END_MARGIN_S: Final = 0.5
_END_SHARE: Final = 0.2
_LEAST_RUN_S: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOutputs:
    """Where a job's news go while it runs; None: nowhere."""

    lines: LiveLines
    items: Callable[[Callable[[], None]], JobItems] | None = None
    progress: Progress | None = None


class _Wish(msgspec.Struct):
    """Of an input: whether the result holds the items, too."""

    return_aggregate_stream: bool | None = None


class JobRun:
    """Runs one job; the watcher of its call."""

    def __init__(self, job: Job, service: Service, settings: Settings, ways: JobOutputs) -> None:
        self.job = job
        self._service = service
        self._settings = settings
        self._ways = ways
        self._limit_s = job.limit_s or settings.job_timeout_s
        self._phase = Phase.BUILD
        self._pending: CallHandle | None = None
        self._task: asyncio.Task[object] | None = None
        #: Whether that was cancelled from here.
        self._interrupted = False
        self._notes = ProgressNotes()
        #: Why the job was ended from here.
        self._cut: FlashpoolError | None = None
        self.items = ways.items(self._credit) if ways.items else None

    async def outcome(self) -> Outcome:
        """Run it. Only the cancellation of the task that calls this is raised."""
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._began = loop.time()
        overdue = None
        if self._limit_s is not None:
            overdue = loop.call_later(self._limit_s - self._reserve_s(), self._overdue)
        try:
            return await self._outcome()
        except asyncio.CancelledError:
            if self._cut is None or not self._interrupted:
                raise
            _uncancel(self._task)
            self._cut.told = self._notes.text()
            self._cut.provision = unprovided(loop.time() - self._began, self._phase.value)
            return of_error(self._cut)
        except FlashpoolError as error:
            return of_error(error)
        except Exception as error:  # noqa: BLE001 - a mistake of ours: the job is not to be lost for it
            _log.exception("Job %s: running it failed", self.job.id)
            return of_error(FlashpoolError(f"the server failed: {type(error).__name__}: {error}"))
        finally:
            if overdue is not None:
                overdue.cancel()
            self._phase = Phase.DONE
            # It holds the result, and the report may wait for the platform for long.
            self._pending = None
            self._ways.lines.close()

    async def _outcome(self) -> Outcome:
        if self._cut is not None:
            raise self._cut
        body = self._body()
        prepared = await self._service.prepare(body, self._told, stream=self.items is not None)
        self._phase = Phase.QUEUE
        if self._ways.progress is not None:
            self._ways.progress.tell(Phase.START.value)
        # Nothing may come between: an environment is held for calls that the pool has.
        call, by_platform = self._limited(prepared.call)
        pending = self._pending = self._service.submit(prepared._replace(call=call), self)
        try:
            outcome = await pending.outcome
        except asyncio.CancelledError:
            pending.cancel("the server gave up the job")
            raise
        return self._told_why(outcome, by_platform=by_platform)

    def _body(self) -> bytes:
        body = self.job.input
        if body is None:
            raise InvalidRequest(self.job.problem)
        limit = self._settings.max_body_mb * 1024 * 1024
        if len(body) > limit:
            raise PayloadTooLarge(
                f"The input is larger than {self._settings.max_body_mb} MiB (FLASHPOOL_MAX_BODY_MB)",
                limit=limit,
            )
        if not self._settings.return_aggregate_stream and len(body) > 2 and body[:1] == b"{":
            # A default: of a key given twice, the last one counts.
            body = b'{"return_aggregate_stream":false,' + body[1:]
        return body

    def without_items(self, outcome: Outcome) -> Outcome:
        """The outcome when items of it did not arrive: no success if nothing else holds them."""
        wish = msgspec.json.decode(self._body(), type=_Wish) if outcome.ok else _Wish()
        if wish.return_aggregate_stream is not False:
            return outcome
        lost = Timeout(
            "the platform has not taken the last items in time (job-stream), and the result does "
            "not hold them: return_aggregate_stream is false",
            phase=Phase.RUN.value,
            limit_s=self._limit_s,
        )
        return replace(of_error(lost), receipt=outcome.receipt, output=outcome.output)

    # Time.

    def at_most_s(self, wanted_s: float) -> float:
        """So many seconds, or those that are left until it has to be reported."""
        if self._limit_s is None:
            return wanted_s
        spent = asyncio.get_running_loop().time() - self._began
        return max(0.0, min(wanted_s, self._limit_s - self._reserve_s() - spent))

    def _reserve_s(self) -> float:
        """Kept of the platform's time for the report."""
        assert self._limit_s is not None
        return min(_REPORT_S, _REPORT_SHARE * self._limit_s)

    def _limited(self, call: Call) -> tuple[Call, bool]:
        """The call with the time that is left; whether that is the platform's doing."""
        asked = call.limits.run_s or self._settings.call_timeout_s
        if self._limit_s is None:
            return call, False
        end = min(self._settings.grace_s + _END_MARGIN_S, _END_SHARE * self._limit_s)
        spent = asyncio.get_running_loop().time() - self._began
        left = max(self._limit_s - self._reserve_s() - end - spent, _LEAST_RUN_S)
        if asked is not None and asked <= left:
            return call, False
        return replace(call, limits=replace(call.limits, run_s=left)), True

    def _overdue(self) -> None:
        phase = self._phase
        self._end(
            Timeout(
                f"the job was not over in phase {phase.value}, and has to be reported. "
                f"{self._of_platform()}",
                phase=phase.value,
                limit_s=self._limit_s,
            )
        )

    def _of_platform(self) -> str:
        source = (
            "policy.executionTimeout of the job" if self.job.limit_s else "FLASHPOOL_JOB_TIMEOUT_S"
        )
        return f"The platform ends it after {self._limit_s:g} s ({source})."

    # Cuts.

    def cancel(self, reason: str) -> bool:
        """End it, unless something else does; its outcome still comes."""
        return self._end(Cancelled(reason, reason=reason))

    def _end(self, cause: FlashpoolError) -> bool:
        if self._phase is Phase.DONE or self._cut is not None:
            return False
        self._cut = cause
        if self._pending is not None:
            self._pending.cancel(cause.message)
        elif self._task is not None:
            self._interrupted = True
            self._task.cancel()
        return True

    def _told_why(self, outcome: Outcome, *, by_platform: bool) -> Outcome:
        """The outcome, with what the pool cannot know about its cause."""
        if isinstance(self._cut, Timeout) and outcome.error_type == "Cancelled":
            cut = of_error(self._cut)
            return replace(outcome, error_type="Timeout", error=cut.error, details=cut.details)
        ours = outcome.error_type == "Timeout" and not outcome.from_user
        if by_platform and ours:
            return replace(outcome, error=f"{outcome.error}\n{self._of_platform()}")
        return outcome

    # What is heard of it (`pending.Watcher`).

    def _told(self, line: str) -> None:
        self._notes.add(line)
        self._ways.lines.feed(f"{line}\n".encode("utf-8", "backslashreplace"))
        if self._ways.progress is not None:
            self._ways.progress.tell(Phase.BUILD.value, line)

    def started(self) -> None:
        """A worker has it."""
        self._phase = Phase.RUN
        if self._ways.progress is not None:
            self._ways.progress.tell(Phase.RUN.value)

    def output(self, chunk: bytes) -> None:
        """It printed."""
        self._ways.lines.feed(chunk)

    def item(self, body: bytes) -> None:
        """It yielded."""
        if self.items is not None:
            self.items.put(body)

    def _credit(self) -> None:
        if self._pending is not None:
            self._service.pool.credit(self._pending.call_id, 1)


def _uncancel(task: asyncio.Task[object] | None) -> None:
    # The cancellation was ours, and is over; before 3.11 tasks do not count them.
    if task is not None and hasattr(task, "uncancel"):
        task.uncancel()
