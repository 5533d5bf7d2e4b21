"""A submitted call, and the pool as front-ends see it.

Service.submit --> CallPool --> output, items --> Watcher (only if there is one)
                       `------> done (once) ----> CallHandle.outcome
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from flashpool.pool.calls import Call, Outcome, Sink
from flashpool.pool.errors import FlashpoolError

from . import logs


class CallPool(Protocol):
    """The pool as front-ends see it; `Supervisor` is one."""

    @property
    def ready(self) -> bool:
        """Whether calls start at once."""

    @property
    def draining(self) -> bool:
        """Whether new calls are refused."""

    @property
    def not_ready_reason(self) -> str:
        """Why no call can be served here for now, although all is up; or nothing."""

    @property
    def slots(self) -> int:
        """Calls of the usual kind that can run at once: on slots, or on GPUs."""

    @property
    def free_slots(self) -> int:
        """Those that could begin now."""

    def check_gpus(self, asked: int | None) -> None:
        """Refuse what asks for more GPUs than there are."""

    def unprovided(self, label: str, error: FlashpoolError) -> None:
        """Count the end of a call that got no environment."""

    async def start(self) -> None:
        """Begin to start."""

    async def wait_ready(self) -> None:
        """Until `ready`, or raise."""

    def submit(self, call: Call, sink: Sink) -> int:
        """Take a call, or raise `Overloaded` or `PoolClosed`."""

    def cancel(self, call_id: int, reason: str = "cancelled") -> None:
        """End a call."""

    def credit(self, call_id: int, items: int) -> None:
        """A streaming call may send so many items more."""

    async def drain(self, limit_s: float, first: Awaitable[object] | None = None) -> bool:
        """Refuse new calls once ``first`` is done, wait for the running ones."""

    async def stop(self, reason: str = ...) -> None:
        """End everything; calls still there are told the reason."""

    def stats(self) -> Any:
        """Counts and lists, as dataclasses."""


class Prepared(NamedTuple):
    """A call whose environment is there."""

    call: Call
    #: What was told while its environment was made; it stands before the call's output.
    notes: bytes = b""
    #: What is odd about the request; told with its outcome.
    warnings: tuple[str, ...] = ()


class Watcher(Protocol):
    """Who hears of a call before it ends; on the pool's loop, and must not block."""

    def started(self) -> None:
        """A worker has it."""

    def output(self, chunk: bytes) -> None:
        """It wrote that to descriptor 1 or 2."""

    def item(self, body: bytes) -> None:
        """It yielded, and waits when a window of items has not been credited."""


class CallHandle:
    """A submitted call: the sink of its outcome."""

    __slots__ = ("_pool", "_prepared", "call_id", "outcome")

    wants_output = False

    def __init__(
        self, pool: CallPool, outcome: asyncio.Future[Outcome], prepared: Prepared
    ) -> None:
        self._pool = pool
        self._prepared = prepared
        self.outcome = outcome
        self.call_id = 0

    def cancel(self, reason: str) -> None:
        """Have the call ended; its outcome still comes."""
        if not self.outcome.done():
            self._pool.cancel(self.call_id, reason)

    def output(self, chunk: bytes) -> None:
        """Not asked for."""

    def item(self, body: bytes, fds: tuple[int, ...]) -> None:
        """Not asked for."""

    def done(self, outcome: Outcome) -> None:
        """The end; who waited may have left."""
        notes, warnings = self._prepared.notes, self._prepared.warnings
        if notes or warnings:
            outcome = replace(outcome, output=notes + outcome.output, warnings=warnings)
        if outcome.error_type is not None:
            logs.tell_end(self._prepared.call.label, outcome)
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class WatchedCallHandle(CallHandle):
    """One that somebody watches meanwhile."""

    __slots__ = ("_watcher", "started")

    wants_output = True

    def __init__(
        self,
        pool: CallPool,
        outcome: asyncio.Future[Outcome],
        prepared: Prepared,
        watcher: Watcher,
    ) -> None:
        super().__init__(pool, outcome, prepared)
        self._watcher = watcher
        self.started = watcher.started

    def output(self, chunk: bytes) -> None:
        """Pass it on."""
        self._watcher.output(chunk)

    def item(self, body: bytes, fds: tuple[int, ...]) -> None:
        """Pass it on; items of flash calls are text, without descriptors."""
        self._watcher.item(body)
