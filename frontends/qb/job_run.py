"""Runs one job, from its input to the outcome of its call; every job has an outcome.

    Job --prepare--> call --submit--> pending ------------> Outcome
                              BUILD     QUEUE     RUN
                              `----------------------'
                    cut: a stop request of the platform, or its time limit

The platform gives a job a time limit, and then calls the job TIMED_OUT; its client may wait
forever. So a job is reported before that: its call gets less time to run, and a call that has not
finished shortly before the limit is reported as a `Timeout` while its processes are stopped.
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
from flashpool.pool.calls import LEAST_RUN_S, Call, Outcome, Phase
from flashpool.pool.errors import (
    Cancelled,
    FlashpoolError,
    InvalidRequest,
    PayloadTooLarge,
    Timeout,
)

from .jobs import Job
from .log_lines import LiveLines
from .results import of_error
from .streaming import JobItems, Progress

_log = logging.getLogger(__name__)

#: Time reserved for reporting, and before that for stopping the call: in seconds at most, and as a
#: share of the platform's limit.
_REPORT_S: Final = 2.0
_REPORT_SHARE: Final = 0.1
_END_MARGIN_S: Final = 0.5
_END_SHARE: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOutputs:
    """Receivers of a job's events while it runs; None: ignored."""

    lines: LiveLines
    items: Callable[[Callable[[], None]], JobItems] | None = None
    progress: Progress | None = None


class _Wish(msgspec.Struct):
    """The field of an input that says whether its result contains the items, too."""

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
        #: Why this object ended the job; None: it did not.
        self._cut: FlashpoolError | None = None
        self.items = ways.items(self._credit) if ways.items else None

    async def outcome(self) -> Outcome:
        """Run the job. This raises only if the calling task is cancelled."""
        loop = asyncio.get_running_loop()
        self._began = loop.time()
        overdue = None
        if self._limit_s is not None:
            overdue = loop.call_later(self._limit_s - self._reserve_s(), self._overdue)
        try:
            return await self._outcome()
        except FlashpoolError as error:
            return of_error(error)
        except Exception as error:  # noqa: BLE001 - a bug of flashpool must not lose the job
            _log.exception("Job %s: running it failed", self.job.id)
            return of_error(FlashpoolError(f"the server failed: {type(error).__name__}: {error}"))
        finally:
            if overdue is not None:
                overdue.cancel()
            self._phase = Phase.DONE
            # The handle holds the result, and the report may wait for the platform for a long time.
            self._pending = None
            self._ways.lines.close()

    async def _outcome(self) -> Outcome:
        if self._cut is not None:
            raise self._cut
        prepared = self._service.prepare(
            self._body(), stream=self.items is not None, request_id=self.job.id
        )
        call, asked_s = self._limited(prepared.call)
        if call.spec is None:
            self.environment_ready()
        pending = self._pending = self._service.submit(prepared._replace(call=call), self)
        try:
            outcome = await pending.outcome
        except asyncio.CancelledError:
            pending.cancel("the server gave up the job")
            raise
        return self._told_why(outcome, asked_s)

    def _body(self) -> bytes:
        body = self._input()
        if body == b"null":
            raise InvalidRequest("the job has no input")
        if not self._settings.return_aggregate_stream and len(body) > 2 and body[:1] == b"{":
            # A default: the last of two equal keys counts.
            body = b'{"return_aggregate_stream":false,' + body[1:]
        return body

    def _input(self) -> bytes:
        body = self.job.input
        if body is None:
            raise InvalidRequest(self.job.problem)
        limit = self._settings.max_body_mb * 1024 * 1024
        if len(body) > limit:
            raise PayloadTooLarge(
                f"The input is larger than {self._settings.max_body_mb} MiB (FLASHPOOL_MAX_BODY_MB)",
                limit=limit,
            )
        return body

    def without_items(self, outcome: Outcome) -> Outcome:
        """Return the outcome after items were lost: a failure unless the result contains them."""
        wish = msgspec.json.decode(self._body(), type=_Wish) if outcome.ok else _Wish()
        if wish.return_aggregate_stream is not False:
            return outcome
        return self._lost_items(outcome)

    def _lost_items(self, outcome: Outcome) -> Outcome:
        lost = Timeout(
            "the platform did not accept the last items in time (job-stream), and the "
            "result does not contain them: return_aggregate_stream is false",
            phase=Phase.RUN.value,
            limit_s=self._limit_s,
        )
        return replace(of_error(lost), receipt=outcome.receipt, output=outcome.output)

    # Time.

    def at_most_s(self, wanted_s: float) -> float:
        """Return the less of ``wanted_s`` and the seconds until the job must be reported."""
        if self._limit_s is None:
            return wanted_s
        spent = asyncio.get_running_loop().time() - self._began
        return max(0.0, min(wanted_s, self._limit_s - self._reserve_s() - spent))

    def _reserve_s(self) -> float:
        """Return the seconds of the platform's limit that are reserved for the report."""
        assert self._limit_s is not None
        return min(_REPORT_S, _REPORT_SHARE * self._limit_s)

    def _limited(self, call: Call) -> tuple[Call, float | None]:
        """Return the call limited to the time left, and the limit that it would have otherwise."""
        asked = call.limits.run_s or self._settings.call_timeout_s
        # The platform may stop the pod as soon as it has the report.
        call = replace(call, awaits_exit=True)
        if self._limit_s is None:
            return call, asked
        end = min(self._settings.grace_s + _END_MARGIN_S, _END_SHARE * self._limit_s)
        spent = asyncio.get_running_loop().time() - self._began
        left = max(self._limit_s - self._reserve_s() - end - spent, LEAST_RUN_S)
        run_s = left if asked is None else min(asked, left)
        limits = replace(call.limits, run_s=run_s, build_and_run_s=left)
        return replace(call, limits=limits), asked

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
        """Cancel the call, unless it is finished or being cut; return whether this cancels it."""
        return self._end(Cancelled(reason, reason=reason))

    def _end(self, cause: FlashpoolError) -> bool:
        if self._phase is Phase.DONE or self._cut is not None:
            return False
        self._cut = cause
        self._stop(cause)
        return True

    def _stop(self, cause: FlashpoolError) -> None:
        if self._pending is not None:
            self._pending.cancel(cause.message)

    def _told_why(self, outcome: Outcome, asked_s: float | None) -> Outcome:
        """Return the outcome, with facts about its cause that the pool does not know."""
        if outcome.from_user or outcome.ok:
            return outcome
        never_ran = not outcome.receipt.environment
        if self._cut is not None and outcome.error_type == "Cancelled":
            cut = of_error(self._cut)
            if never_ran or isinstance(self._cut, Timeout):
                return replace(
                    outcome, error_type=cut.error_type, error=cut.error, details=cut.details
                )
        elif never_ran:
            return replace(outcome, error=f"{outcome.error_type}: {outcome.error}")
        elif outcome.error_type == "Timeout" and self._is_platforms(outcome, asked_s):
            return replace(outcome, error=f"{outcome.error}\n{self._of_platform()}")
        return outcome

    def _is_platforms(self, outcome: Outcome, asked_s: float | None) -> bool:
        """Return whether only the platform's limit shortened the call's time."""
        limit_s = outcome.details.get("limit_s")
        if self._limit_s is None or outcome.details.get("phase") == Phase.QUEUE.value:
            return False
        return asked_s is None or (isinstance(limit_s, (int, float)) and limit_s < asked_s)

    # Events of the call (`call_handles.Watcher`).

    def told(self, line: str) -> None:
        """Report progress: the environment is being built."""
        self._ways.lines.feed(f"{line}\n".encode("utf-8", "backslashreplace"))
        if self._ways.progress is not None:
            self._ways.progress.tell(Phase.BUILD.value, line)

    def environment_ready(self) -> None:
        """Report progress: the call waits for a slot."""
        self._phase = Phase.QUEUE
        if self._ways.progress is not None:
            self._ways.progress.tell(Phase.START.value)

    def started(self) -> None:
        """Report progress: a worker has received the call."""
        self._phase = Phase.RUN
        if self._ways.progress is not None:
            self._ways.progress.tell(Phase.RUN.value)

    def output(self, chunk: bytes) -> None:
        """Log the call's output."""
        self._ways.lines.feed(chunk)

    def item(self, body: bytes) -> None:
        """Stream an item that the call yielded."""
        if self.items is not None:
            self.items.put(body)

    def _credit(self) -> None:
        if self._pending is not None:
            self._service.pool.credit(self._pending.call_id, 1)
