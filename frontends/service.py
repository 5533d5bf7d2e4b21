"""The steps that all front-ends share from a request to its call.

    bytes --prepare--> Prepared --submit--> CallHandle ..outcome.. --answer--> Answer
            |                  |
            InvalidRequest,    Overloaded, PoolClosed,
            Overloaded         InvalidRequest, InstanceConflict

Calls go to a `Backend`, which may be anywhere; it finds their environments, too.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from flashpool.pool.backend import Backend
from flashpool.pool.calls import Call, Outcome
from flashpool.pool.errors import FlashpoolError, Overloaded

from . import responses, schema
from .call_builder import CallAdapter, Defaults, trace_of
from .call_handles import (
    NO_TRACE,
    CallHandle,
    LoggedCallHandle,
    Prepared,
    WatchedCallHandle,
    Watcher,
)
from .ceilings import Ceilings
from .instance_news import InstanceNews
from .logs.calls import tell_end, was_refused
from .replay.keeper import FailureKeeper
from .responses import Answer

if TYPE_CHECKING:
    from .telemetry.tracing import CallSpan, Tracing

_log = logging.getLogger(__name__)


class ReloadOutcome(enum.Enum):
    """The outcome of a reload of a deployed app."""

    #: The successor has loaded, and gets all requests.
    RELOADED = "reloaded"
    #: The artifact is the one that is already served.
    UNCHANGED = "unchanged"
    #: The new app cannot be loaded; the old app keeps serving.
    FAILED = "failed"
    #: No app is served yet, so there is nothing to replace.
    NO_APP = "no_app"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reloaded:
    """The outcome of a reload, and a sentence for the log and the client."""

    outcome: ReloadOutcome
    message: str


class Service:
    """Requests in, answers out, over one pool."""

    def __init__(
        self,
        pool: Backend,
        *,
        result_limit: int | None,
        result_setting: str = "",
        concurrency: int = 1,
        ceilings: Ceilings | None = None,
        adapters: Sequence[CallAdapter] = (),
        logged_bytes_a_second: int = 0,
        keeper: FailureKeeper | None = None,
        tracing: Tracing | None = None,
        news: InstanceNews | None = None,
    ) -> None:
        """``result_setting``: the setting that sets ``result_limit``, for messages.

        ``logged_bytes_a_second``: how much of a call's output is copied to the log.
        """
        #: None: calls are not traced.
        self.tracing = tracing
        self.pool = pool
        self._adapters = tuple(adapters)
        self._ceilings = ceilings or None  # usually there is nothing to check
        self._defaults = Defaults(
            result_limit=result_limit, result_setting=result_setting, concurrency=concurrency
        )
        #: Returns the response of a call that has finished.
        self.answer: Callable[[Outcome], Answer] = partial(
            responses.of_outcome, result_limit=result_limit
        )
        self._keeper = keeper
        self._news = news
        self._logged = logged_bytes_a_second
        self._starting: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._failure: FlashpoolError | None = None
        #: Why the deployed app could not be prepared; empty otherwise.
        self.app_failure = ""
        #: Serves the deployed app's artifact as it is now; None: this server serves no app.
        self.reload_app: Callable[[], Awaitable[Reloaded]] | None = None

    async def start(self) -> None:
        """Start the pool; returns before it is ready."""
        await self.pool.start()
        self._starting = asyncio.ensure_future(self._watch_start())
        if self._news is not None:
            self._news.start()

    async def _watch_start(self) -> None:
        try:
            await self.pool.wait_ready()
            _log.info("Ready")
            await self._build_ahead()
        except FlashpoolError as error:
            self._failure = error
            _log.error("The base environment does not start: %s", error)

    async def _build_ahead(self) -> None:
        """Build environments that calls will need; failures are logged where they occur."""
        watching = self.pool.watching
        if watching is None:
            return
        for adapter in self._adapters:
            for spec in adapter.ahead:
                await watching.build(spec, 0)

    async def drain(self, limit_s: float) -> bool:
        """Take no new requests; return whether all accepted ones finished in time."""
        return await self.pool.drain(limit_s)

    async def stop(self, reason: str = "the server stops") -> None:
        """Stop the pool, its calls and its builds; return when all processes are gone."""
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._stop(reason))
        await asyncio.shield(self._stopping)

    async def _stop(self, reason: str) -> None:
        if self._starting is not None:
            self._starting.cancel()
        await self.pool.stop(reason)
        if self._keeper is not None:
            await self._keeper.close()
        if self.tracing is not None:
            await self.tracing.close()
        if self._news is not None:
            await self._news.close()

    def health(self) -> int:
        """Return the status for a load balancer's probe: 200 ready, 204 starting, 503 neither."""
        if self.pool.draining:
            return 503
        if self.pool.ready:
            self._failure = None  # a later start went well
            return 200
        return 503 if self._failure or self.pool.not_ready_reason else 204

    @property
    def start_failure(self) -> str:
        """Return why the base environment did not start, unless a later start succeeded."""
        return "" if self._failure is None or self.pool.ready else str(self._failure)

    @property
    def not_ready_reason(self) -> str:
        """Return why `health` answers 503, or an empty string."""
        if self._failure:
            return f"the base environment does not start: {self._failure}"
        return self.pool.not_ready_reason

    def prepare(
        self,
        body: bytes,
        *,
        stream: bool = False,
        request_id: str = "",
        caller: Mapping[str, str] = NO_TRACE,
    ) -> Prepared:
        """Return the call that a request asks for; ``request_id`` is the client's id for the call.

        With ``stream``, the items of a generator function go to the call's watcher one by one.
        ``caller``: the call's place in its caller's trace; if empty, the request's own fields.
        """
        if self.pool.draining:
            raise Overloaded("The server is draining and accepts no new calls", retry_after_s=1)
        request, body, warnings = schema.decode(body)
        if self._ceilings is not None:
            self._ceilings.check(request)
        call = self._defaults.call_of(request, body, stream, request_id)
        if call.imports:  # a source that imports nothing does not use a client's library
            for adapter in self._adapters:
                call = adapter.adapted(request, call)
        if self.tracing is not None:
            caller = caller or trace_of(request)
        return Prepared(call, warnings, caller)

    def submit(self, prepared: Prepared, watcher: Watcher | None = None) -> CallHandle:
        """Hand a call to the pool."""
        span = None
        if self.tracing is not None:
            span = self.tracing.begin(prepared.call, prepared.caller)
            prepared = prepared._replace(call=replace(prepared.call, trace=span.trace))
        if watcher is not None:
            pending: CallHandle = WatchedCallHandle(watcher, self.pool, prepared, self._again)
        elif self._logged:
            pending = LoggedCallHandle(self._logged, self.pool, prepared, self._again)
        else:
            pending = CallHandle(self.pool, prepared, self._again)
        if self._keeper is not None:
            pending.failed = self._failed
        if self._news is not None and (want := prepared.call.want) is not None:
            self._news.called(want)
            pending.annotated = self._news.annotated
        if span is None:
            pending.call_id = self.pool.submit(prepared.call, pending)
        else:
            self._submit_traced(prepared.call, pending, span)
        return pending

    def _submit_traced(self, call: Call, pending: CallHandle, span: CallSpan) -> None:
        pending.span = span
        try:
            pending.call_id = self.pool.submit(call, pending)
        except FlashpoolError as error:
            span.ended(call, 0, responses.outcome_of(error))
            raise

    def _failed(self, call: Call, call_id: int, outcome: Outcome) -> None:
        tell_end(call, call_id, outcome)
        if self._keeper is not None and not was_refused(outcome):
            self._keeper.failed(call, call_id, outcome)

    def _again(self, call: Call, outcome: Outcome) -> Call | None:
        """Return the call that an adapter runs in place of one with this outcome, or None."""
        found = (adapter.again(call, outcome) for adapter in self._adapters)
        return next((one for one in found if one is not None), None)
