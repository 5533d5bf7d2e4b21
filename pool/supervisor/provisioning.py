"""Calls that name packages, on their way through the store of environments.

    add(id, call, spec, sink) -> waiting[spec] --resolve, once a spec--> submit(the call in it)
                                        | progress               `-----> sink.done(the error)
                                        v
                                    sink.told

Any number of calls may wait for one environment, but the store is asked only once for them.
Cancelling the last of these calls cancels the question, and with it a build that no other question
needs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Protocol

from flashpool.pool import call_ids
from flashpool.pool.apps import App
from flashpool.pool.call_history import CallHistory
from flashpool.pool.calls import NOWHERE, Call, Outcome, Phase, Provision, Receipt, Sink, unprovided
from flashpool.pool.errors import (
    CallError,
    Cancelled,
    EnvironmentError,
    FlashpoolError,
    Overloaded,
    PoolClosed,
)
from flashpool.pool.progress_notes import ProgressNotes
from flashpool.pool.recorder import Recorder
from flashpool.pool.stats import StoreStats
from flashpool.pool.watching import BuildView

from .builds_ahead import BuildsAhead, key_of
from .environment_leases import EnvironmentLeases

if TYPE_CHECKING:
    from flashpool.envs import Spec

_log = logging.getLogger(__name__)

#: Calls that may wait for environments at once if the queue is limited, or the queue's limit if
#: that is higher; further calls are refused.
MOST_WAITING: Final = 1000
#: Waits of at least this length are reported to the caller, even if the environment was built
#: already.
NOTEWORTHY_S: Final = 1.0


class Submit(Protocol):
    """`Supervisor.submit`, for a call that already has an id."""

    def __call__(self, call: Call, sink: Sink, call_id: int) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class UnprovidedCall:
    """A call whose environment is being found or built."""

    id: int
    call: Call
    sink: Sink
    since: float = field(default_factory=time.monotonic)


class _EnvironmentQuestion:
    """One question to the store, and the calls that wait for its answer."""

    __slots__ = ("_notes", "calls", "progress", "since", "spec", "task")

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.calls: dict[int, UnprovidedCall] = {}
        self.task: asyncio.Task[None] | None = None
        self._notes = ProgressNotes()
        #: The latest progress line.
        self.progress = ""
        self.since = time.monotonic()

    def report(self, line: str) -> None:
        """Receive a progress line of the store."""
        self.progress = line = self._notes.add(line)
        for waiting in list(self.calls.values()):
            waiting.sink.told(line)

    def notes(self) -> bytes:
        """Return all progress lines as text, to be placed before a call's output."""
        return self._notes.text()


class Provisioning:
    """Finds the environment of each call."""

    def __init__(
        self,
        environments: EnvironmentLeases,
        *,
        submit: Submit,
        recorder: Recorder,
        history: CallHistory,
        queue_limit: int | None,
        settled: Callable[[], None],
    ) -> None:
        self._environments = environments
        self._submit = submit
        self._recorder = recorder
        self._history = history
        self._limit = None if queue_limit is None else max(queue_limit, MOST_WAITING)
        #: Called after each call that ended here.
        self._settled = settled
        self._questions: dict[Spec, _EnvironmentQuestion] = {}
        #: The question that each waiting call waits for, by the call's id.
        self._waiting: dict[int, _EnvironmentQuestion] = {}
        #: Every question that has not ended, including those without waiting calls.
        self._tasks: set[asyncio.Task[None]] = set()
        self.ahead = BuildsAhead()

    def __len__(self) -> int:
        """Return the number of waiting calls."""
        return len(self._waiting)

    @property
    def oldest_age_s(self) -> float | None:
        """Seconds that the oldest call has waited."""
        for call_id, question in self._waiting.items():
            return round(time.monotonic() - question.calls[call_id].since, 3)
        return None

    def stores(self) -> list[StoreStats]:
        """Return the state of each open store."""
        return self._environments.stores()

    def add(self, call_id: int, call: Call, spec: Spec, sink: Sink) -> None:
        """Take a call, to submit or fail it when its environment is known.

        Raises:
            Overloaded: too many calls wait.
        """
        if self._limit is not None and len(self._waiting) >= self._limit:
            self._recorder.refused["environment"] += 1
            raise Overloaded(
                "too many requests are waiting for their environments", retry_after_s=5
            )
        question = self._questions.get(spec)
        if question is None:
            question = self._questions[spec] = _EnvironmentQuestion(spec)
            question.task = task = asyncio.ensure_future(self._ask(question))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        question.calls[call_id] = UnprovidedCall(id=call_id, call=call, sink=sink)
        self._waiting[call_id] = question

    async def open_app(self, app: App) -> str:
        """Return an environment for the workers of an app, by its name in the pool.

        The caller must start something in it in the same turn of the loop, or the environment may
        count as unused.

        Raises:
            InvalidRequest, EnvironmentError, Timeout: the environment cannot be provided.
        """
        return await self._environments.open_app(app, lambda _line: None)

    def is_lost(self, name: str) -> bool:
        """Return whether no new process may start in the copy of that name."""
        return self._environments.is_lost(name)

    def cancel(self, call_id: int, reason: str) -> bool:
        """Cancel a call that waits here; return False if it does not."""
        question = self._waiting.get(call_id)
        if question is None:
            return False
        waiting = self._take(call_id, question)
        if not question.calls and question.task is not None:
            # The next call with this spec asks again: the answer to this question will be
            # "cancelled".
            self._forget(question)
            question.task.cancel()
        error = Cancelled(f"the call was cancelled: {reason}", reason=reason)
        self._fail(call_id, waiting, error, question.notes(), Phase.BUILD.value)
        return True

    def refuse_all(self) -> None:
        """Fail all waiting calls as `Overloaded`: another server may still build for them."""
        for call_id, question in list(self._waiting.items()):
            self._forget(question)
            if question.task is not None:
                question.task.cancel()
            error = Overloaded("The server is draining and starts no more builds", retry_after_s=1)
            self._fail(call_id, self._take(call_id, question), error, question.notes())

    # For operators.

    def waiting(self) -> list[UnprovidedCall]:
        """Return all waiting calls, oldest first."""
        return [self._waiting[call_id].calls[call_id] for call_id in sorted(self._waiting)]

    def waiting_call(self, call_id: int) -> UnprovidedCall | None:
        """Return one waiting call."""
        question = self._waiting.get(call_id)
        return None if question is None else question.calls.get(call_id)

    def follow(self, call_id: int, sink: Sink) -> bytes:
        """Replace the call's sink; return the progress so far."""
        question = self._waiting[call_id]
        question.calls[call_id] = replace(question.calls[call_id], sink=sink)
        return question.notes()

    def builds(self) -> list[BuildView]:
        """Return builds that calls wait for, and builds ahead of calls."""
        found = [
            BuildView(
                key=key_of(spec),
                requirements=spec.requirements,
                python_version=spec.python_version,
                calls=tuple(map(call_ids.name_of, question.calls)),
                age_s=round(time.monotonic() - question.since, 3),
                progress=question.progress,
            )
            for spec, question in self._questions.items()
        ]
        return [*found, *self.ahead.views()]

    def cancel_build(self, key: str, reason: str) -> int | None:
        """Cancel all calls that wait for a build; return their number, or None without a build."""
        cancelled = self.ahead.cancel(key, reason)
        found = [one for spec, one in self._questions.items() if key_of(spec) == key]
        if not (found or cancelled):
            return None
        calls = [call_id for question in found for call_id in question.calls]
        for call_id in calls:
            self.cancel(call_id, reason)
        return len(calls)

    async def build_ahead(self, spec: Spec, wait_s: float) -> Mapping[str, Any]:
        """Build an environment for later calls; see `BuildsAhead.build`."""
        return await self.ahead.build(spec, self._environments, wait_s)

    async def explain(self, spec: Spec) -> Mapping[str, Any]:
        """Explain what building an environment would install."""
        return await self._environments.explain(spec)

    async def lock_of(self, digest: str) -> tuple[str, ...]:
        """Return the exact versions in an environment."""
        return await self._environments.lock_of(digest)

    async def listing(self) -> Mapping[str, Any]:
        """List the store's environments."""
        return await self._environments.listing()

    async def published(self, limit_s: float) -> bool:
        """Wait until built environments are on the volume, too; return False on timeout."""
        try:
            await asyncio.wait_for(self._environments.published(), max(0.0, limit_s))
        except asyncio.TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Cancel questions and release all leases; the pool's processes are gone."""
        self.refuse_all()
        await self.ahead.close()
        tasks = list(self._tasks)
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._environments.close()

    async def _ask(self, question: _EnvironmentQuestion) -> None:
        failure: FlashpoolError | None = None
        provision = NOWHERE
        try:
            provision = await self._environments.resolve(question.spec, question.report)
        except asyncio.CancelledError:
            failure = PoolClosed("the pool was shut down before the environment was there")
        except FlashpoolError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - fails every call that waits for this answer
            _log.exception("Finding an environment failed")
            what = f"{type(error).__name__}: {error}"
            failure = EnvironmentError(f"the store of environments failed: {what}")
        # No await from here on: an environment that no call uses may be released at any await.
        self._forget(question)
        notes = question.notes() if question.calls else b""
        for call_id in list(question.calls):
            if call_id not in question.calls:
                continue  # finishing another call has cancelled this one
            waiting = self._take(call_id, question)
            if failure is None:
                self._hand_over(call_id, waiting, provision, notes)
            else:
                phase = str(failure.details.get("phase") or "spec")
                self._fail(call_id, waiting, failure, notes, phase)

    def _hand_over(
        self, call_id: int, waiting: UnprovidedCall, provision: Provision, notes: bytes
    ) -> None:
        waited = time.monotonic() - waiting.since
        call, sink = waiting.call.provided(provision, waited), waiting.sink
        sink.environment_ready()
        # Progress lines of a quick look-up are dropped, except warnings.
        if provision.origin != "built" and waited <= NOTEWORTHY_S:
            notes = _warnings(notes)
        if notes:
            sink = _SinkWithNotes(sink, notes)
        try:
            self._submit(call, sink, call_id)
        except FlashpoolError as error:
            # The call never became a call of the pool, and is not counted.
            self._end(waiting, error, b"", NOWHERE)

    def _fail(
        self,
        call_id: int,
        waiting: UnprovidedCall,
        error: FlashpoolError,
        notes: bytes,
        phase: str = "build",
    ) -> None:
        """Fail a call whose environment is not available."""
        spent = unprovided(time.monotonic() - waiting.since, phase)
        outcome = self._end(waiting, error, notes, spent)
        # A request that is not valid does not count as a call.
        if isinstance(error, CallError):
            self._recorder.unprovided(call_id, waiting.call.label, outcome)

    def _end(
        self, waiting: UnprovidedCall, error: FlashpoolError, notes: bytes, provision: Provision
    ) -> Outcome:
        for fd in waiting.call.fds:
            os.close(fd)
        outcome = Outcome(
            error_type=type(error).__name__,
            error=error.message,
            details=dict(error.details),
            output=notes,
            receipt=Receipt(provision=provision, call_id=waiting.id),
        )
        self._history.keep(waiting.id, waiting.call, outcome)
        waiting.sink.done(outcome)
        self._settled()
        return outcome

    def _take(self, call_id: int, question: _EnvironmentQuestion) -> UnprovidedCall:
        del self._waiting[call_id]
        return question.calls.pop(call_id)

    def _forget(self, question: _EnvironmentQuestion) -> None:
        """Make the next call with this spec ask again."""
        if self._questions.get(question.spec) is question:
            del self._questions[question.spec]


def _warnings(notes: bytes) -> bytes:
    lines = notes.splitlines(keepends=True)
    return b"".join(line for line in lines if line.startswith(b"warning: "))


class _SinkWithNotes:
    """A call's sink that puts progress lines of the environment before the call's output."""

    __slots__ = (
        "_done",
        "environment_ready",
        "item",
        "notes",
        "output",
        "started",
        "told",
        "wants_output",
    )

    def __init__(self, sink: Sink, notes: bytes) -> None:
        self._done = sink.done
        self.notes = notes
        self.wants_output = sink.wants_output
        self.told = sink.told
        self.environment_ready = sink.environment_ready
        self.started = getattr(sink, "started", None)
        self.output = sink.output
        self.item = sink.item

    def done(self, outcome: Outcome) -> None:
        """Pass on the outcome, with the progress lines before its output."""
        self._done(replace(outcome, output=self.notes + outcome.output))
