"""A scripted backend without processes, and scripted slow environments."""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flashpool.envs import Spec
from flashpool.pool.apps import App, AppService
from flashpool.pool.call_history import CallHistory
from flashpool.pool.calls import Call, Outcome, Provision, Receipt, Sink
from flashpool.pool.errors import FlashpoolError, PoolClosed
from flashpool.pool.recorder import Recorder
from flashpool.pool.stats import StoreStats
from flashpool.pool.supervisor.environment_leases import EnvironmentLeases, Report
from flashpool.pool.supervisor.provisioning import Provisioning
from flashpool.pool.watching import CallWatching

#: base64 of cloudpickle.dumps(None).
NONE = b"gAVOLg=="


@dataclass
class Stats:
    calls: int = 0


@dataclass
class StandInPool:
    """Finishes each call at once with ``outcome``, or holds the call until `finish`."""

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
    watching: CallWatching | None = None
    #: Environments for calls that name packages; None: every call uses the base.
    environments: EnvironmentLeases | None = None
    recorder: Recorder = field(default_factory=Recorder)
    calls: list[Call] = field(default_factory=list)
    held: dict[int, Sink] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    on_submit: Callable[[int], None] = lambda _call_id: None
    stopped: bool = False
    credits: int = 0
    _ids: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    shares_descriptors = False

    def __post_init__(self) -> None:
        self.provisioning = Provisioning(
            self.environments or InBase(),
            submit=self.submit,
            history=CallHistory(),
            recorder=self.recorder,
            queue_limit=None,
            settled=lambda: None,
        )

    @property
    def unfinished(self) -> int:
        return len(self.provisioning) + len(self.held)

    async def start(self) -> None:
        pass

    async def wait_ready(self) -> None:
        if self.start_error:
            raise self.start_error

    def submit(self, call: Call, sink: Sink, call_id: int | None = None) -> int:
        if self.refusal:
            raise self.refusal
        if self.stopped:
            raise PoolClosed("stopped")
        call_id = call_id or next(self._ids)
        if call.spec is not None:
            self.provisioning.add(call_id, call, call.spec, sink)
            return call_id
        self.calls.append(call)
        if self.outcome is None:
            self.held[call_id] = sink
        else:
            asyncio.get_running_loop().call_soon(sink.done, self.outcome)
        self.on_submit(call_id)
        return call_id

    def finish(self, call_id: int, outcome: Outcome) -> None:
        self.held.pop(call_id).done(outcome)

    def cancel(self, call_id: int, reason: str = "cancelled") -> None:
        if not self.provisioning.cancel(call_id, reason) and call_id in self.held:
            self.cancelled.append(reason)
            self.finish(call_id, Outcome(error_type="Cancelled", error=f"Cancelled: {reason}"))

    def credit(self, call_id: int, items: int) -> None:
        self.credits += items

    def release(self, instance: str, reason: str) -> None:
        pass

    def open_app(self, app: App) -> AppService:
        raise NotImplementedError

    def take_calls(self, taking: bool) -> bool:
        self.draining = not taking
        return True

    async def drain(self, limit_s: float) -> bool:
        self.draining = True
        return not self.held

    async def stop(self, reason: str = "the pool stops") -> None:
        self.stopped = True
        for call_id in list(self.held):
            self.cancel(call_id, reason)
        await self.provisioning.close()

    def stats(self) -> Any:
        return Stats(calls=len(self.calls))


class Unasked:
    """Methods for operators that these tests do not use."""

    async def build_ahead(self, spec: Spec, report: Report) -> Provision:
        raise NotImplementedError

    async def explain(self, spec: Spec) -> dict[str, Any]:
        raise NotImplementedError

    async def listing(self) -> dict[str, Any]:
        raise NotImplementedError

    async def lock_of(self, digest: str) -> tuple[str, ...]:
        raise NotImplementedError


class InBase(Unasked):
    """Environments that always return the base."""

    async def resolve(self, spec: Spec, report: Report) -> Provision:
        report("looked")
        return Provision()

    async def open_app(self, app: App, report: Report) -> str:
        return Provision().environment

    def is_lost(self, name: str) -> bool:
        return False

    def stores(self) -> list[StoreStats]:
        return []

    async def published(self) -> None:
        pass

    async def close(self) -> None:
        pass


class Slow(Unasked):
    """Environments that take a while, and record their cancellation."""

    def __init__(self, seconds: float = 60.0) -> None:
        self.seconds = seconds
        self.asked = 0
        self.cancelled = False

    async def resolve(self, spec: Spec, report: Report) -> Provision:
        report("building")
        self.asked += 1
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return Provision(environment="made", origin="built", resolve_s=0.5)

    def stores(self) -> list[StoreStats]:
        return []

    async def published(self) -> None:
        pass

    async def close(self) -> None:
        pass
