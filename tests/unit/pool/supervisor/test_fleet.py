"""The whole pool with messages that arrive late, twice, out of order, or not at all.

No exception, no call without its end, no process that nobody owns: whatever comes, in any order.
"""

from __future__ import annotations

import asyncio
from typing import Any
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flashpool.pool._child import wire
from flashpool.pool.calls import Call, CallLimits, Codec, InstanceRequest, Outcome, Provision
from flashpool.pool.config import PoolConfig
from flashpool.pool.errors import FlashpoolError
from flashpool.pool.supervisor import components
from flashpool.pool.supervisor.supervisor import Supervisor
from flashpool.pool.workers import zygote_set
from support.fake_processes import FakeWorker, FakeZygote, Fleet

SOME = st.integers(0, 30)


class Clock:
    """Replaces the pool's `RunningTime`; its time has no pauses."""

    at = 1000.0

    def now(self) -> float:
        return self.at

    beat = now


class Loop(asyncio.SelectorEventLoop):
    """A loop whose timers use that clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def time(self) -> float:
        return self._clock.at


class Sink:
    """A sink that counts outcomes."""

    wants_output = True

    def __init__(self) -> None:
        self.ends = 0

    def output(self, chunk: bytes, *, stderr: bool = False) -> None:
        assert not self.ends

    def item(self, body: bytes, fds: tuple[int, ...]) -> None:
        assert not self.ends

    def done(self, outcome: Outcome) -> None:
        self.ends += 1


class DisorderlyFleet(RuleBasedStateMachine):
    """Calls come and go, processes live and die, and messages about them arrive in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet()
        self.clock = Clock()
        self.patches = [
            mock.patch.object(zygote_set, "ZygoteProcess", self.fleet.kind),
            mock.patch.object(components, "RunningTime", return_value=self.clock),
        ]
        for patch in self.patches:
            patch.start()
        self.loop = Loop(self.clock)
        self.errors: list[Any] = []
        self.loop.set_exception_handler(lambda _loop, context: self.errors.append(context))
        self.supervisor = Supervisor(
            PoolConfig(
                slots=2,
                max_spares=3,
                grace_s=0.3,
                exit_s=4.0,
                instances=2,
                call_timeout_s=20.0,
                max_environments=1,
                worker_env={},
            )
        )
        self.loop.run_until_complete(self.supervisor.start())
        self.sinks: dict[int, Sink] = {}
        self.turns()

    def turns(self, number: int = 6) -> None:
        for _ in range(number):
            self.loop.run_until_complete(asyncio.sleep(0))
            self.fleet.look()

    # Calls.

    def submit(self, **more: Any) -> None:
        sink = Sink()
        call = Call(codec=Codec.FLASH, body=b"{}", label="f", function_key="f", **more)
        try:
            self.sinks[self.supervisor.submit(call, sink)] = sink
        except FlashpoolError:
            assert not sink.ends
        self.turns(2)

    @rule(
        other=st.booleans(),
        stream=st.booleans(),
        idempotent=st.booleans(),
        run_s=st.sampled_from([None, 1.5]),
    )
    def call(self, other, stream, idempotent, run_s) -> None:
        if other:
            self.supervisor.environments.add("other", "python")
        provision = Provision(environment="other") if other else Provision()
        limits = CallLimits(run_s=run_s)
        self.submit(stream=stream, idempotent=idempotent, provision=provision, limits=limits)

    @rule(
        name=st.sampled_from("abc"),
        method=st.sampled_from(["plain", "overlaps"]),
        anew=st.booleans(),
        must_exist=st.booleans(),
    )
    def call_of_an_instance(self, name, method, anew, must_exist) -> None:
        want = InstanceRequest(
            instance=name,
            class_name="Thing",
            method=method,
            code="code",
            arguments="",
            concurrency=4,
            anew=anew and not must_exist,
            must_exist=must_exist,
        )
        self.submit(want=want, limits=CallLimits(run_s=1.5))

    @rule(number=SOME)
    def cancel(self, number) -> None:
        self.supervisor.cancel(number)
        self.turns(2)

    @rule(number=SOME)
    def credit(self, number) -> None:
        self.supervisor.credit(number, 3)

    @rule(name=st.sampled_from("abc"))
    def release(self, name) -> None:
        self.supervisor.release(name, "no more use")
        self.turns(2)

    # Processes.

    def pick(self, number: int) -> tuple[FakeZygote, FakeWorker] | None:
        workers = self.fleet.workers()
        # Processes with work come first: they are the interesting ones.
        workers.sort(key=lambda one: not one[1].frames)
        return workers[number % len(workers)] if workers else None

    def answer(self, worker: FakeWorker, frame: wire.Frame, more: dict[str, Any], ok: bool) -> None:
        worker.began = True
        if not ok:
            more = {**more, "error_type": "ValueError", "error": "no", "user": True}
        meta = wire.ResultMeta(ok=ok, form="json", run_s=0.1, rss_kb=1000, more=more).pack()
        if frame.kind == wire.LOAD:
            worker.send(wire.LOADED, meta)
        elif frame.kind == wire.CALL:
            if worker.resident and frame.meta:
                meta = wire.numbered(wire.split_number(frame.meta)[0], meta)
            worker.send(wire.RESULT, meta, b"1")

    @rule(
        number=SOME,
        ok=st.booleans(),
        more=st.sampled_from(
            [
                {},
                {"modules": ["pandas", "numpy"]},
                {"exiting": True},
                {"overlapping": ["overlaps"]},
                {"poisoned": "CUDA"},
            ]
        ),
        times=st.integers(1, 2),
        leaves=st.booleans(),
    )
    def worker_answers(self, number, ok, more, times, leaves) -> None:
        if (one := self.pick(number)) is None:
            return
        zygote, worker = one
        frames = worker.frames or [wire.Frame(wire.CALL, b"", b"", [])]
        for _ in range(times):
            self.answer(worker, frames[0], more, ok)
        del worker.frames[:1]
        if leaves:
            zygote.worker_dies(worker, 0)
        self.turns(2)

    @rule(
        number=SOME,
        call=SOME,
        kind=st.sampled_from(
            [wire.ITEM, wire.RESULT, wire.LOADED, wire.OUTPUT, wire.EXIT, wire.WORKER_READY, 77]
        ),
        stage=st.sampled_from([wire.FLUSHED, wire.RUNS, wire.ANSWER, wire.DONE]),
        numbered=st.booleans(),
    )
    def worker_sends_what_nobody_waits_for(self, number, call, kind, stage, numbered) -> None:
        if (one := self.pick(number)) is None:
            return
        if kind == wire.EXIT:
            meta = wire.pack_exit(stage, "1 thread", "")
        elif kind in (wire.RESULT, wire.LOADED):
            meta = wire.ResultMeta(ok=True, form="json", run_s=0.1, rss_kb=1, more={}).pack()
        else:
            meta = b""
        one[1].began = True
        one[1].send(kind, wire.numbered(call, meta) if numbered else meta, b"body")
        one[1].print(b"printed")
        self.turns(2)

    @rule(number=SOME, status=st.sampled_from([0, 9, 11, 0x300]), orphans=st.integers(0, 1))
    def worker_dies(self, number, status, orphans) -> None:
        if (one := self.pick(number)) is not None:
            one[0].worker_dies(one[1], status, orphans)
            self.turns(2)

    @rule(number=SOME)
    def worker_closes_its_channel(self, number) -> None:
        if (one := self.pick(number)) is not None:
            one[1].far.shutdown(2)
            self.turns(2)

    @rule(number=SOME, code=st.sampled_from([-9, 137, 1]))
    def zygote_dies(self, number, code) -> None:
        alive = [one for one in self.fleet.zygotes if one.alive]
        if alive:
            alive[number % len(alive)].exits(code)
            self.turns(2)

    @rule(
        number=SOME,
        op=st.sampled_from(
            [
                (wire.LOADING, {"module": "numpy"}),
                (wire.SKIPPED, {"modules": ["numpy"], "why": "it is odd"}),
                (wire.PRELOADED, {"reads": {}}),
                (wire.UNSAFE, {"module": "numpy", "why": "threads"}),
                (wire.NOT_FORKED, {"n": 1, "why": "no room"}),
                (wire.PONG, {}),
            ]
        ),
    )
    def zygote_tells(self, number, op) -> None:
        alive = [one for one in self.fleet.zygotes if one.alive]
        if alive:
            alive[number % len(alive)].tell(op[0], **op[1])

    # Messages about processes.

    @precondition(lambda self: self.fleet.outbox)
    @rule()
    def next_message_comes(self) -> None:
        self.fleet.deliver()
        self.turns()

    @precondition(lambda self: self.fleet.outbox)
    @rule()
    def all_messages_come(self) -> None:
        while self.fleet.outbox:
            self.fleet.deliver()
        self.turns()

    @precondition(lambda self: self.fleet.outbox)
    @rule(at=SOME, again=st.booleans())
    def some_message_comes(self, at, again) -> None:
        self.fleet.deliver(at % len(self.fleet.outbox), again=again)
        self.turns()

    @precondition(lambda self: self.fleet.outbox)
    @rule(at=SOME)
    def some_message_is_lost(self, at) -> None:
        self.fleet.drop(at % len(self.fleet.outbox))

    @rule(seconds=st.integers(1, 8))
    def time_passes(self, seconds) -> None:
        for _ in range(seconds):
            self.clock.at += 1.01
            self.turns(3)

    @invariant()
    def nothing_is_raised(self) -> None:
        stats = self.supervisor.stats()
        assert not self.errors, self.errors
        assert not stats.supervisor.callback_errors, stats.supervisor.last_callback_error
        assert all(sink.ends <= 1 for sink in self.sinks.values())
        assert 0 <= stats.slots.busy <= 2

    # The end.

    def teardown(self) -> None:
        try:
            self._end()
        finally:
            for patch in self.patches:
                patch.stop()
            self.loop.close()

    def _end(self) -> None:
        """From here on messages are in order: every call finishes, then every process exits."""
        for _ in range(300):
            self._orderly_second()
            if all(sink.ends for sink in self.sinks.values()):
                break
        waiting = [number for number, sink in self.sinks.items() if not sink.ends]
        assert not waiting, "these calls never ended"
        stop = self.loop.create_task(self.supervisor.stop(grace_s=0.0))
        for _ in range(60):
            self._orderly_second()
            if stop.done():
                break
        assert stop.done(), "the pool did not stop"
        self.nothing_is_raised()
        one = self.supervisor._components
        assert not list(one.worker_set)
        assert not list(one.zygote_set)
        assert not one.scheduler.busy
        for zygote in self.fleet.zygotes:
            assert zygote.process.waited, "nobody owned this process"  # type: ignore[attr-defined]

    def _orderly_second(self) -> None:
        while self.fleet.outbox:
            self.fleet.deliver()
        self.turns(3)
        for zygote, worker in self.fleet.workers():
            while worker.frames:
                frame = worker.frames.pop(0)
                if frame.kind == wire.CLOSE:
                    zygote.worker_dies(worker, 0)
                else:
                    self.answer(worker, frame, {}, True)
        self.turns(3)
        self.clock.at += 1.01
        self.turns(3)


DisorderlyFleet.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestDisorderlyFleet = DisorderlyFleet.TestCase
