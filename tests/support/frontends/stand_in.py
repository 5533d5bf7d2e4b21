"""A pool that answers as a test tells it to: the interface of the supervisor, and no process."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from flashpool.pool.calls import Call, Outcome, Receipt, Sink
from flashpool.pool.errors import FlashpoolError, InvalidRequest, PoolClosed

#: base64 of cloudpickle.dumps(None).
NONE = b"gAVOLg=="


@dataclass
class Stats:
    calls: int = 0


@dataclass
class StandInPool:
    """Ends each call at once with ``outcome``, or holds it until `finish`."""

    outcome: Outcome | None = field(
        default_factory=lambda: Outcome(body=NONE, receipt=Receipt(pid=7))
    )
    refusal: FlashpoolError | None = None
    start_error: FlashpoolError | None = None
    ready: bool = True
    draining: bool = False
    slots: int = 2
    free_slots: int = 2
    not_ready_reason: str = ""
    gpus: int = 0
    calls: list[Call] = field(default_factory=list)
    held: dict[int, Sink] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    on_submit: Callable[[int], None] = lambda _call_id: None
    unprovided_calls: list[FlashpoolError] = field(default_factory=list)
    stopped: bool = False
    credits: int = 0
    _ids: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    async def start(self) -> None:
        pass

    def check_gpus(self, asked: int | None) -> None:
        if asked is not None and asked > self.gpus:
            raise InvalidRequest(f"gpus: asks for {asked}, and there are {self.gpus} here")

    def unprovided(self, label: str, error: FlashpoolError) -> None:
        self.unprovided_calls.append(error)

    async def wait_ready(self) -> None:
        if self.start_error:
            raise self.start_error

    def submit(self, call: Call, sink: Sink) -> int:
        if self.refusal:
            raise self.refusal
        if self.stopped:
            raise PoolClosed("stopped")
        self.calls.append(call)
        call_id = next(self._ids)
        if self.outcome is None:
            self.held[call_id] = sink
        else:
            asyncio.get_running_loop().call_soon(sink.done, self.outcome)
        self.on_submit(call_id)
        return call_id

    def finish(self, call_id: int, outcome: Outcome) -> None:
        self.held.pop(call_id).done(outcome)

    def cancel(self, call_id: int, reason: str = "cancelled") -> None:
        if call_id in self.held:
            self.cancelled.append(reason)
            self.finish(call_id, Outcome(error_type="Cancelled", error=f"Cancelled: {reason}"))

    def credit(self, call_id: int, items: int) -> None:
        self.credits += items

    async def drain(self, limit_s: float, first: Awaitable[object] | None = None) -> bool:
        self.draining = True
        if first is not None:
            await first
        return not self.held

    async def stop(self, reason: str = "the pool stops") -> None:
        self.stopped = True
        for call_id in list(self.held):
            self.cancel(call_id, reason)

    def stats(self) -> Stats:
        return Stats(calls=len(self.calls))
