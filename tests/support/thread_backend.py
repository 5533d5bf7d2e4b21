"""A second backend: calls run in threads of this process, without isolation, packages or instances.

It shows what a backend has to do, and that whoever submits calls knows no other part of the pool:
the generic part of the Executor suite runs over it, and so does a server.
"""

import asyncio
import contextlib
import enum
import io
import itertools
import pickle
import sys
import threading
import time
from collections import deque
from queue import SimpleQueue
from typing import Any

from flashpool.pool import Pool
from flashpool.pool._child import wire
from flashpool.pool._child.running import worker
from flashpool.pool.apps import App, AppService
from flashpool.pool.calls import Call, Codec, Outcome, Receipt, Sink
from flashpool.pool.errors import InvalidRequest, Overloaded, PoolClosed
from flashpool.pool.recorder import Recorder
from flashpool.pool.stats import GpusStats, PoolStats, QueueStats, SlotStats


def _member(kind: type[enum.Enum], name: str) -> enum.Enum:
    """The member of an enumeration."""
    return kind[name]


class _DataOnly(pickle.Unpickler):
    """An unpickler that accepts only the pool's own types and plain values of Python."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member  # Python 3.11.0 to 3.11.3 pickle members of enumerations this way
        assert module.startswith("flashpool."), f"{module}.{name} is not data"
        return super().find_class(module, name)


def as_on_another_machine(one: Any) -> Any:
    """Return a call or outcome after a round trip through bytes, as across machines."""
    return _DataOnly(io.BytesIO(pickle.dumps(one, 5))).load()


class ThreadCall:
    """One call, and the channel on which its code sends items and waits for credit."""

    #: The sender of items reads this attribute of a channel before it blocks.
    frames = True

    def __init__(self, backend: "ThreadBackend", call: Call, sink: Sink) -> None:
        self.call = call
        self.sink = sink
        self.ended = False
        self.since = time.monotonic()
        self.credit: SimpleQueue[int] = SimpleQueue()
        self._backend = backend

    def run(self) -> None:
        """Run the call; the thread's main function."""
        call, began = self.call, time.monotonic()
        frame = wire.Frame(wire.CALL, b"", call.body, [])
        pickled, limit = call.codec is Codec.PICKLE, call.limits.result_bytes
        channel: Any = self
        form, body, fds, failure = worker.run(channel, frame, pickled, call.stream, limit)
        receipt = Receipt(run_s=time.monotonic() - began, attempts=1, start_method="thread")
        if not failure:
            outcome = Outcome(body=body, fds=tuple(fds), format=form, receipt=receipt)
        else:
            outcome = Outcome(
                error_type=failure["error_type"],
                error=failure["error"],
                exception=body or None,
                details=failure.get("details", {}),
                from_user=failure.get("user", False),
                receipt=receipt,
            )
        del body, fds, failure
        self._backend.loop.call_soon_threadsafe(self._backend.left, self, outcome)

    def send(self, _kind: int, _meta: bytes, body: bytes, fds: list[int]) -> None:
        """One item."""
        self._backend.loop.call_soon_threadsafe(self._item, body, tuple(fds))

    def receive(self) -> wire.Frame:
        """Wait for credit."""
        items = self.credit.get()
        if self.ended:
            sys.exit("nobody reads any more")
        return wire.Frame(wire.CREDIT, wire.CREDIT_META.pack(items), b"", [])

    def _item(self, body: bytes, fds: tuple[int, ...]) -> None:
        if not self.ended:
            self.sink.item(body, fds)


class ThreadBackend:
    """A `Backend`."""

    shares_descriptors = False
    not_ready_reason = ""
    watching = None

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.draining = self.stopped = False
        self.recorder = Recorder()
        self.calls: dict[int, ThreadCall] = {}
        self.waiting: deque[ThreadCall] = deque()
        self.threads: dict[ThreadCall, threading.Thread] = {}
        self._ids = itertools.count(1)
        self._main = sys.modules["__main__"]

    async def start(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()

    async def wait_ready(self) -> None:
        pass

    @property
    def unfinished(self) -> int:
        return len(self.calls)

    @property
    def ready(self) -> bool:
        return not self.draining

    @property
    def free_slots(self) -> int:
        return self.slots - len(self.threads)

    def submit(self, call: Call, sink: Sink) -> int:
        if self.stopped:
            raise PoolClosed("the backend was stopped")
        if self.draining:
            raise Overloaded("the backend drains", retry_after_s=1)
        if call.spec is not None or call.want is not None or call.gpus:
            raise InvalidRequest("threads have no packages, instances or GPUs of their own")
        assert not call.fds
        call_id = next(self._ids)
        one = self.calls[call_id] = ThreadCall(self, as_on_another_machine(call), sink)
        self.waiting.append(one)
        self._begin()
        return call_id

    def _begin(self) -> None:
        while self.waiting and self.free_slots > 0:
            one = self.waiting.popleft()
            if one.ended:
                continue
            if (started := getattr(one.sink, "started", None)) is not None:
                started()
            self.threads[one] = threading.Thread(target=one.run, daemon=True)
            self.threads[one].start()

    def left(self, one: ThreadCall, outcome: Outcome) -> None:
        """Handle the end of a call's thread."""
        sys.modules["__main__"] = self._main  # code of a request may have replaced this module
        self.threads.pop(one).join()
        self._end(one, outcome)
        self._begin()

    def _end(self, one: ThreadCall, outcome: Outcome) -> None:
        self._changed.set()
        if not one.ended:
            one.ended = True
            self.calls = {number: other for number, other in self.calls.items() if other is not one}
            self.recorder.ended(None, one.call.label, outcome)
            one.sink.done(as_on_another_machine(outcome))

    def take_calls(self, taking: bool) -> bool:
        self.draining = self.stopped or not taking
        return not self.stopped

    def cancel(self, call_id: int, reason: str = "cancelled") -> None:
        # Python cannot kill a thread, so the result is ignored.
        if (one := self.calls.get(call_id)) is not None:
            error = f"the call was cancelled: {reason}"
            self._end(one, Outcome(error_type="Cancelled", error=error, details={"reason": reason}))
            one.credit.put(0)

    def credit(self, call_id: int, items: int) -> None:
        if (one := self.calls.get(call_id)) is not None:
            one.credit.put(items)

    def release(self, instance: str, reason: str) -> None:
        pass

    def open_app(self, app: App) -> AppService:
        raise NotImplementedError("apps need processes")

    async def drain(self, limit_s: float) -> bool:
        self.draining = True
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._until(lambda: not self.calls), limit_s)
        return not self.calls

    async def stop(
        self, reason: str = "the backend was stopped", *, grace_s: float | None = None
    ) -> None:
        # A thread cannot be killed, with a grace or without.
        self.draining = self.stopped = True
        for call_id in list(self.calls):
            self.cancel(call_id, reason)
        await self._until(lambda: not self.threads)

    async def _until(self, holds: Any) -> None:
        while not holds():
            self._changed.clear()
            await self._changed.wait()

    def stats(self) -> PoolStats:
        waiting = sum(not one.ended for one in self.waiting)
        return PoolStats(
            ready=self.ready,
            unfit=None,
            draining=self.draining,
            slots=SlotStats(total=self.slots, busy=len(self.threads)),
            queue=QueueStats(depth=waiting, limit=None, oldest_age_s=None, refused=0),
            shortages=[],
            gpus=GpusStats(total=0, usable=0, waiting=0, driver="none", reason=None, devices=[]),
            zygotes=[],
            running=[],
            instances=[],
            apps=[],
            stuck=[],
            calls=self.recorder.calls,
            outcomes=dict(self.recorder.outcomes),
            latency=self.recorder.latency(),
            last_hour=self.recorder.last_hour(),
            environment_origins=dict(self.recorder.origins),
            recent_failures=self.recorder.failures(),
            exits=self.recorder.exits(0),
            supervisor=self.recorder.supervisor(),
        )


class ThreadPool(Pool):
    """A `Pool` over this backend."""

    def _make_backend(self) -> ThreadBackend:
        return ThreadBackend(self._config.slots)
