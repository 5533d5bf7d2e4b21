"""From an outcome to a report of a size that the platform takes."""

import asyncio
import base64
import json
import os
import pickle
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flashpool.frontends.qb.outbox import JobReport
from flashpool.frontends.qb.results import Results, of_error
from flashpool.frontends.qb.spill import Spill
from flashpool.frontends.service import Service
from flashpool.pool.calls import Outcome, Receipt, unprovided
from flashpool.pool.errors import InvalidRequest


def report_of(outcome: Outcome, limit: int = 10_000, spill: Spill | None = None) -> dict[str, Any]:
    service = Service(None, result_limit=1 << 30)  # type: ignore[arg-type]
    results = Results(service, limit, spill)
    report = asyncio.run(results.report("job", outcome, streamed=False))
    assert len(report.body) <= limit
    decoded: dict[str, Any] = json.loads(report.body)
    return decoded


def test_only_a_failure_has_an_error_field() -> None:
    fine = report_of(Outcome(body=b"5", format="json"))
    assert fine["output"]["json_result"] == 5
    assert "error" not in fine
    assert "error" not in fine["output"]
    failed = report_of(of_error(InvalidRequest("no")))
    assert failed["error"] == "InvalidRequest: no"
    assert failed["output"]["success"] is False
    assert "error" not in failed["output"]


def test_a_result_that_is_too_large_fails_with_sizes_and_keeps_its_output() -> None:
    outcome = Outcome(body=msgspec.json.encode("x" * 20_000), format="json", output=b"printed")
    found = report_of(outcome)
    assert found["output"]["error_type"] == "ResultTooLarge"
    assert found["output"]["details"]["size"] > 20_000
    assert found["output"]["stdout"] == "printed"
    assert "FLASHPOOL_RESULT_SPILL" in found["error"]


@pytest.mark.parametrize("form", ["json", "stream"])
@pytest.mark.parametrize("spills", [False, True])
def test_output_that_is_too_large_is_cut_and_the_result_stays(
    tmp_path: Path, form: str, spills: bool
) -> None:
    body = b"" if form == "stream" else b"5"
    outcome = Outcome(body=body, format=form, output=b"first" + b"o" * 300_000 + b"last")
    found = report_of(outcome, 100_000, Spill(tmp_path, 60) if spills else None)["output"]
    assert found["success"] is True
    assert found["json_result"] == ([] if form == "stream" else 5)
    assert found["stdout"].startswith("first")
    assert found["stdout"].endswith("last")
    assert not os.listdir(tmp_path)


def test_a_job_without_an_environment_reports_the_build() -> None:
    outcome = Outcome(
        error_type="EnvironmentError",
        error="no",
        output=b"resolving\n",
        receipt=Receipt(provision=unprovided(2.0, "build")),
    )
    output = report_of(outcome)["output"]
    assert output["stdout"] == "resolving\n"
    assert output["receipt"]["environment"] is None
    assert output["receipt"]["environment_origin"] == "failed"
    assert output["receipt"]["seconds"]["build"] == 2.0


@pytest.mark.parametrize("form", ["json", "pickle"])
def test_a_result_that_is_too_large_is_spilled(tmp_path: Path, form: str) -> None:
    data = b"x" * 20_000
    body = msgspec.json.encode(data.decode()) if form == "json" else base64.b64encode(data)
    found = report_of(Outcome(body=body, format=form), spill=Spill(tmp_path, 60))["output"]
    reference = found["spilled"]
    written = Path(reference["path"]).read_bytes()
    assert written == (body if form == "json" else data)
    assert reference["bytes"] == len(written)
    result = found["json_result"] or pickle.loads(base64.b64decode(found["result"]))
    assert result == {"flashpool_result": reference}


@pytest.mark.parametrize("form", ["json", "pickle"])
def test_a_large_result_is_not_copied(tmp_path: Path, form: str) -> None:
    """Results may have a gigabyte, so each copy matters."""
    body = b'"%s"' % (b"x" * 20_000_000)
    if form == "pickle":
        body = base64.b64encode(body)
    tracemalloc.start()
    try:
        found = report_of(Outcome(body=body, format=form), spill=Spill(tmp_path, 60))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found["output"]["spilled"]["bytes"] == 20_000_002
    assert peak < 4_000_000


@pytest.mark.parametrize(
    "body", [b"A" * 19_999 + b"!", b"A" * 20_001, b"AA==" + b"A" * 20_000, b"A" * 20_000 + b"A==="]
)
def test_a_malformed_result_is_not_spilled(tmp_path: Path, body: bytes) -> None:
    found = report_of(Outcome(body=body, output=b"printed"), spill=Spill(tmp_path, 60))["output"]
    assert found["error_type"] == "WorkerCrashed"
    assert found["stdout"] == "printed"
    assert not os.listdir(tmp_path)


def test_a_volume_that_hangs_delays_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = threading.Event()
    monkeypatch.setattr(os, "fsync", lambda _: back.wait(30))
    service = Service(None, result_limit=1 << 30)  # type: ignore[arg-type]
    results = Results(service, 10_000, Spill(tmp_path, 60))
    outcome = Outcome(body=b'"%s"' % (b"x" * 20_000), format="json")

    async def report() -> JobReport:
        return await results.report("job", outcome, streamed=False, spill_s=0.1)

    try:
        found = json.loads(asyncio.run(report()).body)
        assert found["output"]["error_type"] == "ResultTooLarge"
        assert "has not answered within 0.1 s" in found["error"]
    finally:
        back.set()


def test_a_volume_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outcome = Outcome(body=b'"%s"' % (b"x" * 20_000), format="json")
    found = report_of(outcome, spill=Spill(tmp_path / "file" / "x", 60))
    assert found["output"]["error_type"] == "ResultTooLarge"
    assert "cannot be written" in found["error"]


def test_old_spilled_results_are_deleted(tmp_path: Path) -> None:
    old, young = tmp_path / "old-01234567.pkl", tmp_path / "young-01234567.pkl"
    for path in (old, young):
        path.touch()
    os.utime(old, (1, 1))
    report_of(Outcome(body=b'"%s"' % (b"x" * 20_000), format="json"), spill=Spill(tmp_path, 60))
    assert not old.exists()
    assert young.exists()


def test_a_failure_that_is_too_large_keeps_the_ends_of_its_texts() -> None:
    outcome = Outcome(
        error_type="ValueError",
        error="begin" + "e" * 1_000_000 + "end",
        exception=b"p" * 1_000_000,
        output=b"o" * 1_000_000,
        from_user=True,
    )
    found = report_of(outcome, limit=500_000)
    assert found["error"].startswith("begin")
    assert found["error"].endswith("end")
    assert "exception" not in found["output"]
    assert len(found["output"]["stdout"]) < 70_000


def test_what_the_platform_refuses_as_too_large_keeps_its_cause_if_it_can() -> None:
    service = Service(None, result_limit=1 << 30)  # type: ignore[arg-type]
    results = Results(service, 10_000_000, None)
    outcome = Outcome(error_type="ValueError", error="e" * 1_000_000, from_user=True)
    report = asyncio.run(results.report("job", outcome, streamed=True))
    shorter = results.refused(report)
    assert shorter.job_id == "job"
    assert shorter.streamed
    assert len(shorter.body) < 300_000
    found = json.loads(shorter.body)
    assert found["error"].startswith("eee")
    assert found["output"]["error_type"] == "ValueError"
    least = json.loads(results.refused(shorter).body)
    assert least["output"]["error_type"] == "ResultTooLarge"
    assert "FLASHPOOL_JOB_RESULT_LIMIT_MB" in least["error"]
