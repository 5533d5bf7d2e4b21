"""Reports of a deployed app's jobs, compared with what the SDK's own loop reports."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from runpod.serverless.modules.rp_job import run_job

from flashpool.frontends.qb.deployed.app_results import AppResults
from flashpool.frontends.qb.outbox import JobReport
from flashpool.frontends.qb.spill import KEY, Spill
from flashpool.frontends.service import Service
from flashpool.pool.calls import Outcome
from support.frontends.stand_in import StandInPool

LIMIT = 300_000


def results(spill: "Spill | None" = None) -> AppResults:
    return AppResults(Service(StandInPool(), result_limit=None), LIMIT, spill)


def report(outcome: Outcome, spill: "Spill | None" = None) -> dict[str, Any]:
    made = asyncio.run(results(spill).report("a", outcome, streamed=False))
    assert len(made.body) <= LIMIT
    assert made.failed == ("error" in json.loads(made.body))
    found: dict[str, Any] = json.loads(made.body)
    return found


def returned(value: Any) -> Outcome:
    return Outcome(body=json.dumps(value).encode(), format="json")


@pytest.mark.parametrize(
    "value",
    [5, "x", None, [1, [2]], True, {"a": 1}, {"error": None, "x": 1}, {"error": "", "x": 1},
     {"error": "no", "x": 1}, {"error": {"code": 3}}, {"refresh_worker": True, "x": 1},
     {"refresh_worker": False, "x": 1}, {"success": False, "error": "no", "traceback": "t"}],
    ids=repr,
)  # fmt: skip
def test_return_values_are_reported_as_the_sdk_reports_them(value: Any) -> None:
    assert report(returned(value)) == {
        "output": {}, **asyncio.run(run_job(lambda job: json.loads(json.dumps(value)), {"id": "a"}))
    }  # fmt: skip


def test_an_empty_result_has_an_output() -> None:
    """Without an output field, the client returns the platform's whole answer."""
    assert report(returned({})) == {"output": {}}


@pytest.mark.parametrize("more", [{"success": False}, {}], ids=["function", "async"])
def test_an_exception_without_a_message_is_a_failure(more: dict[str, Any]) -> None:
    told = report(returned({**more, "error": "", "traceback": "Traceback:\n  x\nValueError\n"}))
    assert told["error"] == "ValueError"
    assert told["output"]["traceback"]
    assert "error" not in report(returned({"error": "", "mine": 1}))


def test_failures_of_the_pool_are_reported() -> None:
    told = report(
        Outcome(error_type="WorkerCrashed", error="WorkerCrashed: gone", details={"n": 1})
    )
    assert told == {
        "output": {"success": False, "error_type": "WorkerCrashed", "details": {"n": 1}},
        "error": "WorkerCrashed: gone",
    }


def test_a_result_that_is_too_large_is_spilled_or_fails(tmp_path: Path) -> None:
    large = returned({"x": "y" * LIMIT})
    told = report(large)
    assert told["output"]["error_type"] == "ResultTooLarge"
    assert str(LIMIT) in told["error"]
    reference = report(large, Spill(tmp_path / "results", 60.0))["output"][KEY]
    assert json.loads(Path(reference["path"]).read_bytes()) == {"x": "y" * LIMIT}


def test_a_failure_that_is_too_large_is_truncated(tmp_path: Path) -> None:
    spill = Spill(tmp_path / "results", 60.0)
    told = report(returned({"error": "e" * LIMIT, "traceback": "t" * LIMIT}), spill)
    assert told["error"].startswith("eee")
    assert "left out" in told["output"]["traceback"]
    told = report(returned({"error": ["e" * LIMIT], "success": False}), spill)
    assert told["output"] == {"success": False}


def test_a_report_that_the_platform_refuses_is_replaced() -> None:
    made = results()
    refused = made.refused(JobReport(job_id="a", body=json.dumps({"output": "x" * 100}).encode()))
    assert json.loads(refused.body)["output"]["error_type"] == "ResultTooLarge"
    failed = {"output": {"traceback": "t" * LIMIT}, "error": "no"}
    refused = made.refused(JobReport(job_id="a", body=json.dumps(failed).encode()))
    assert json.loads(refused.body)["error"] == "no"
    assert len(refused.body) < LIMIT


def test_the_debuggers_fields_are_added_to_dicts_only() -> None:
    made = results()
    made.more = lambda: {"rp_debugger": {"a": 1}}
    for value, output in [({"x": 1}, {"x": 1, "rp_debugger": {"a": 1}}), (5, 5)]:
        told = asyncio.run(made.report("a", returned(value), streamed=False))
        assert json.loads(told.body) == {"output": output}
