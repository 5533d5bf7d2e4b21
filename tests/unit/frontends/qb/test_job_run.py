"""One job's time limit, its cancellation and its call's options; the pool is a stand-in."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from flashpool.frontends.qb.job_run import JobOutputs, JobRun
from flashpool.frontends.qb.jobs import Job
from flashpool.frontends.qb.log_lines import LiveLines
from flashpool.frontends.service import Service
from flashpool.frontends.settings.table import Settings
from flashpool.pool.calls import NOWHERE, Outcome, Receipt
from flashpool.pool.errors import Overloaded
from support.frontends.stand_in import Slow, StandInPool

REQUEST = {"function_name": "f", "function_code": "def f(): pass"}


def ran(
    pool: StandInPool,
    meanwhile: Callable[[JobRun], Awaitable[None]] | None = None,
    *,
    limit_s: float | None = None,
    variables: dict[str, str] | None = None,
    **fields: Any,
) -> Outcome:
    """Run a job with this request; return its outcome."""
    settings = Settings.from_environ(variables or {})

    async def run() -> Outcome:
        service = Service(pool, result_limit=None)
        job = Job(id="a", input=json.dumps({**REQUEST, **fields}).encode(), limit_s=limit_s)
        lines = LiveLines("a", 1000)
        one = JobRun(job, service, settings, JobOutputs(lines=lines))
        task = asyncio.ensure_future(one.outcome())
        if meanwhile is not None:
            await asyncio.sleep(0.01)
            await meanwhile(one)
        return await asyncio.wait_for(task, 30)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("limit_s", "fields", "low", "high"),
    [
        # Reserved: 2 s for the report, the grace of 2 s, and half a second to end the call.
        # The time since the job was taken is subtracted as well.
        (None, {}, 590, 595.5),
        (100, {}, 90, 95.5),
        (20, {}, 10, 15.5),
        (5, {}, 1, 3.5),
        (100, {"timeout_s": 7}, 7, 7),
        (5, {"timeout_s": 7}, 1, 3.5),
    ],
)
def test_a_call_gets_less_time_than_the_platform_gives(
    limit_s: float | None, fields: dict[str, Any], low: float, high: float
) -> None:
    pool = StandInPool()
    assert ran(pool, limit_s=limit_s, **fields).ok
    run_s = pool.calls[0].limits.run_s
    assert run_s is not None
    assert low <= run_s <= high


def test_a_build_counts_against_the_calls_time() -> None:
    pool = StandInPool(environments=Slow(0.5))
    assert ran(pool, limit_s=5, dependencies=["thing"], timeout_s=7).ok
    run_s = pool.calls[0].limits.run_s
    assert run_s is not None
    # From the 5 s: half a second for the report, 1 s to end the call, and the build's time.
    assert 2.5 <= run_s <= 3.0


@pytest.mark.parametrize(
    ("asked", "limit_s", "told"), [(None, 15.5, True), (60, 15.5, True), (7, 7.0, False)]
)
def test_a_timeout_by_the_platforms_limit_names_execution_timeout(
    asked: float | None, limit_s: float, told: bool
) -> None:
    late = Outcome(error_type="Timeout", error="late", details={"phase": "run", "limit_s": limit_s})
    fields = {} if asked is None else {"timeout_s": asked}
    outcome = ran(StandInPool(outcome=late), limit_s=20, **fields)
    assert ("executionTimeout" in (outcome.error or "")) is told


def test_errors_of_environments_name_their_type() -> None:
    refused = Outcome(error_type="Overloaded", error="full", receipt=Receipt(provision=NOWHERE))
    assert ran(StandInPool(outcome=refused)).error == "Overloaded: full"


def test_without_a_limit_of_the_job_the_pools_default_applies() -> None:
    pool = StandInPool()
    ran(pool, variables={"FLASHPOOL_JOB_TIMEOUT_S": "none"})
    assert pool.calls[0].limits.run_s is None


def test_a_job_whose_call_does_not_finish_is_reported_in_time() -> None:
    pool = StandInPool(outcome=None)
    outcome = ran(pool, limit_s=0.2)
    assert outcome.error_type == "Timeout"
    assert outcome.details["limit_s"] == 0.2
    assert "executionTimeout" in (outcome.error or "")
    assert len(pool.cancelled) == 1


def test_a_job_whose_build_does_not_finish_is_reported_in_time() -> None:
    outcome = ran(StandInPool(environments=Slow()), limit_s=0.2, dependencies=["thing"])
    assert outcome.error_type == "Timeout"
    assert outcome.details["phase"] == "build"
    assert outcome.output == b"building\n"
    assert outcome.receipt.provision.origin == "failed"
    assert outcome.receipt.provision.build_s > 0


@pytest.mark.parametrize("fields", [{}, {"dependencies": ["thing"]}], ids=["run", "build"])
def test_a_job_can_be_cancelled_while_it_builds_or_runs(fields: dict[str, Any]) -> None:
    async def stop(run: JobRun) -> None:
        run.cancel("the platform stopped the job")
        run.cancel("twice does no harm")

    outcome = ran(StandInPool(outcome=None, environments=Slow()), stop, **fields)
    assert outcome.error_type == "Cancelled"
    assert "the platform stopped the job" in (outcome.error or "")


def test_a_refusal_by_the_pool_is_an_outcome() -> None:
    outcome = ran(StandInPool(refusal=Overloaded("full", retry_after_s=1)))
    assert outcome.error_type == "Overloaded"


@pytest.mark.parametrize(
    ("given", "setting", "kept"),
    [({}, "no", False), ({"return_aggregate_stream": True}, "no", True), ({}, "yes", True)],
)
def test_the_request_or_the_setting_decides_whether_items_are_kept(
    given: dict[str, Any], setting: str, kept: bool
) -> None:
    pool = StandInPool()
    ran(pool, variables={"FLASHPOOL_RETURN_AGGREGATE_STREAM": setting}, **given)
    # The default is the one that the worker applies.
    assert json.loads(pool.calls[0].body).get("return_aggregate_stream", True) is kept
