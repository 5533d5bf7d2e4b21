"""Calls that wait for environments: one request to the store for many, an outcome for each."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from flashpool.envs import Spec
from flashpool.pool.call_history import CallHistory
from flashpool.pool.calls import (
    BASE_ENVIRONMENT,
    Call,
    CallLimits,
    Codec,
    InstanceRequest,
    Outcome,
    Provision,
    Sink,
)
from flashpool.pool.errors import EnvironmentError, Overloaded
from flashpool.pool.recorder import Recorder
from flashpool.pool.stats import StoreStats
from flashpool.pool.supervisor import provisioning as module
from flashpool.pool.supervisor.environment_leases import Report
from flashpool.pool.supervisor.provisioning import Provisioning
from support.frontends.stand_in import Slow, Unasked
from support.live import Sink as CollectingSink
from support.waiting import until

SPEC = Spec(requirements=("thing",))
OTHER = Spec(requirements=("other",))
CALL = Call(codec=Codec.FLASH, body=b"{}", label="f")
MADE = Provision(environment="made", origin="memo", resolve_s=0.1)


class Told(Unasked):
    """Environments that answer each request when a test says so."""

    def __init__(self) -> None:
        self.questions: list[tuple[Spec, Report]] = []
        self.answers: list[asyncio.Future[Provision]] = []
        self.closed = False

    async def resolve(self, spec: Spec, report: Report) -> Provision:
        self.questions.append((spec, report))
        self.answers.append(asyncio.get_running_loop().create_future())
        return await self.answers[-1]

    def stores(self) -> list[StoreStats]:
        return []

    async def published(self) -> None:
        pass

    async def close(self) -> None:
        self.closed = True


class Pool:
    """Provisioning, and the calls it submits."""

    def __init__(self, queue_limit: int | None = None) -> None:
        self.store = Told()
        self.submitted: list[tuple[int, Call]] = []
        self.sinks: list[Sink] = []
        self.recorder = Recorder()
        self.settled = 0
        self.refusal: Overloaded | None = None
        self.provisioning = Provisioning(
            self.store,
            submit=self.submit,
            history=CallHistory(),
            recorder=self.recorder,
            queue_limit=queue_limit,
            settled=self.settle,
        )

    def settle(self) -> None:
        self.settled += 1

    def submit(self, call: Call, sink: Sink, call_id: int) -> int:
        if self.refusal is not None:
            raise self.refusal
        self.submitted.append((call_id, call))
        self.sinks.append(sink)
        return call_id

    def add(self, call_id: int, spec: Spec = SPEC, call: Call = CALL) -> CollectingSink:
        sink = CollectingSink(asyncio.get_running_loop().create_future())
        self.provisioning.add(call_id, call, spec, sink)
        return sink

    async def asked(self, questions: int = 1) -> None:
        await until(lambda: len(self.store.answers) >= questions)

    async def answer(self, which: int = 0, provision: Provision = MADE) -> None:
        self.store.answers[which].set_result(provision)
        await asyncio.sleep(0)
        await asyncio.sleep(0)


def on_loop(test: Callable[[Pool], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        async def main() -> None:
            pool = Pool()
            try:
                await asyncio.wait_for(test(pool), 20)
            finally:
                await pool.provisioning.close()
            assert pool.store.closed
            assert len(pool.provisioning) == 0

        asyncio.run(main())

    run.__name__ = test.__name__
    return run


@on_loop
async def test_calls_of_one_spec_share_one_request_and_its_progress(pool: Pool) -> None:
    first, second = pool.add(1), pool.add(2)
    await pool.asked()
    pool.add(3, OTHER)
    await pool.asked(2)
    assert [spec for spec, _ in pool.store.questions] == [SPEC, OTHER]
    pool.store.questions[0][1]("building")
    late = pool.add(4)
    assert len(pool.provisioning) == 4
    await pool.answer(provision=replace(MADE, origin="built"))
    assert [call_id for call_id, _ in pool.submitted] == [1, 2, 4]
    assert all(call.environment == "made" and call.spec is None for _, call in pool.submitted)
    assert first.lines == second.lines == ["building", "ready"]
    assert late.lines == ["ready"]
    assert len(pool.provisioning) == 1
    # Progress comes before the call's own output.
    pool.sinks[2].done(Outcome(output=b"its own"))
    assert late.future.result().output == b"building\nits own"


@on_loop
async def test_a_warning_is_shown_even_if_the_environment_was_found_at_once(pool: Pool) -> None:
    """For example, the request names an extra that the package does not have."""
    sink = pool.add(1)
    await pool.asked()
    for line in ("found", "warning: no such extra", "ready"):
        pool.store.questions[0][1](line)
    await pool.answer()
    pool.sinks[0].done(Outcome(output=b"its own"))
    assert sink.future.result().output == b"warning: no such extra\nits own"


@on_loop
async def test_progress_is_not_shown_if_the_environment_was_found_at_once(pool: Pool) -> None:
    sink = pool.add(1)
    await pool.asked()
    pool.store.questions[0][1]("found")
    await pool.answer()
    assert pool.sinks == [sink]


@on_loop
async def test_cancelling_the_last_waiting_call_cancels_the_request(pool: Pool) -> None:
    first, second = pool.add(1), pool.add(2)
    await pool.asked()
    assert pool.provisioning.cancel(1, "the client went away")
    assert not pool.store.answers[0].cancelled()
    assert not pool.provisioning.cancel(1, "again")
    assert pool.provisioning.cancel(2, "the client went away")
    again = pool.add(3)
    await pool.asked(2)
    assert pool.store.answers[0].cancelled()
    for sink in (first, second):
        outcome = sink.future.result()
        assert outcome.error_type == "Cancelled"
        assert outcome.error == "the call was cancelled: the client went away"
        assert outcome.details == {"reason": "the client went away"}
    await pool.answer(1)
    assert [call_id for call_id, _ in pool.submitted] == [3]
    assert again.lines == ["ready"]
    assert pool.recorder.outcomes == {"Cancelled": 2}
    assert pool.settled == 2


@on_loop
async def test_each_call_has_its_own_failure_and_times(pool: Pool) -> None:
    first = pool.add(1)
    await pool.asked()
    await asyncio.sleep(0.05)
    second = pool.add(2)
    pool.store.answers[0].set_exception(EnvironmentError("uv said no", phase="resolve"))
    outcomes = await asyncio.gather(first.future, second.future)
    assert {one.error for one in outcomes} == {"uv said no"}
    assert outcomes[0].details is not outcomes[1].details
    spent = [one.receipt.provision.resolve_s for one in outcomes]
    assert spent[0] >= 0.05 > spent[1]
    assert pool.recorder.outcomes == {"EnvironmentError": 2}


@on_loop
async def test_descriptors_of_a_cancelled_call_are_closed(pool: Pool) -> None:
    reader, writer = os.pipe()
    sink = pool.add(1, call=replace(CALL, fds=(writer,)))
    await pool.asked()
    pool.provisioning.cancel(1, "no use")
    assert sink.future.done()
    assert os.read(reader, 1) == b""
    os.close(reader)


@on_loop
async def test_a_stop_refuses_waiting_calls_as_overloaded(pool: Pool) -> None:
    sink = pool.add(1)
    await pool.asked()
    pool.provisioning.refuse_all()
    outcome = sink.future.result()
    assert (outcome.error_type, outcome.details) == ("Overloaded", {"retry_after_s": 1})
    await asyncio.sleep(0)
    assert pool.store.answers[0].cancelled()
    assert not pool.recorder.outcomes


@on_loop
async def test_a_refusal_after_provisioning_is_the_outcome(pool: Pool) -> None:
    sink = pool.add(1)
    await pool.asked()
    pool.refusal = Overloaded("the queue is full", retry_after_s=1)
    await pool.answer()
    outcome = sink.future.result()
    assert (outcome.error_type, outcome.error) == ("Overloaded", "the queue is full")
    assert (outcome.receipt.environment, outcome.receipt.provision.origin) == ("", "")
    assert not pool.recorder.outcomes


@on_loop
async def test_the_environment_is_part_of_an_instances_code(pool: Pool) -> None:
    want = InstanceRequest(instance="one", code=("key", None))
    unknown = InstanceRequest(instance="known to its caller only", code=None)
    for call_id, wanted in ((1, want), (2, unknown)):
        pool.add(call_id, call=replace(CALL, want=wanted))
    pool.add(3, OTHER, replace(CALL, want=want))
    await pool.asked(2)
    await pool.answer()
    await pool.answer(1, replace(MADE, environment=BASE_ENVIRONMENT))
    codes = [call.want.code for _, call in pool.submitted if call.want]
    # The code of a call without packages is unchanged, too.
    assert codes == [(("key", None), "made"), None, ("key", None)]


@on_loop
async def test_the_time_of_a_build_is_subtracted_from_the_time_to_run(pool: Pool) -> None:
    limits = CallLimits(run_s=9, build_and_run_s=10, memory_mb=64)
    pool.add(1, call=replace(CALL, limits=limits))
    await pool.asked()
    await asyncio.sleep(0.01)
    await pool.answer()
    (_, call) = pool.submitted[0]
    assert call.limits == CallLimits(run_s=9, memory_mb=64)
    assert limits.after_build(4) == CallLimits(run_s=6, memory_mb=64)
    assert limits.after_build(60).run_s == 0.05


def test_a_bounded_queue_bounds_the_calls_that_wait_for_environments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 2)

    async def main(queue_limit: int | None) -> int:
        pool = Pool(queue_limit)
        taken = 0
        with contextlib.suppress(Overloaded):
            for call_id in range(1, 10):
                pool.add(call_id)
                taken += 1
        await pool.provisioning.close()
        return taken

    assert [asyncio.run(main(limit)) for limit in (1, 5, None)] == [2, 5, 9]


def test_closing_cancels_requests_in_progress() -> None:
    async def main() -> None:
        pool = Pool()
        slow = Slow()
        pool.provisioning._environments = slow
        sink = pool.add(1)
        await until(lambda: slow.asked)
        await pool.provisioning.close()
        assert slow.cancelled
        assert sink.future.result().error_type == "Overloaded"

    asyncio.run(main())
