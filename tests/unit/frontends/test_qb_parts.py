"""The queue's parts that need no process: reading jobs, lines, modes, reports on disk and sizes."""

import asyncio
import base64
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flashpool.frontends import modes, qb_jobs, qb_places
from flashpool.frontends.qb_jobs import Job, NoJobs
from flashpool.frontends.qb_outbox import Outbox, Report
from flashpool.frontends.qb_output import LINE_LIMIT, LiveLines
from flashpool.frontends.qb_posts import Verdict
from flashpool.frontends.qb_reports import Reports
from flashpool.frontends.qb_results import Results, of_error
from flashpool.frontends.qb_spill import Spill
from flashpool.frontends.qb_stream import CHUNK_LIMIT, Items, Progress
from flashpool.frontends.service import Service
from flashpool.pool.calls import Outcome
from flashpool.pool.errors import EnvironmentError, InvalidRequest
from flashpool.pool.settings import Settings

# -- Jobs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "jobs"),
    [
        (b'{"id":"a","input":{"x":1},"webhook":"w"}', [Job(id="a", input=b'{"x":1}')]),
        (b'{"id":7,"input":[]}', [Job(id="7", input=b"[]")]),
        (b'[{"id":"a","input":1},{"id":"b","input":2}]',
         [Job(id="a", input=b"1"), Job(id="b", input=b"2")]),
        (b'{"id":"a","input":0,"policy":{"executionTimeout":1500}}',
         [Job(id="a", input=b"0", limit_s=1.5)]),
        (b"[]", []),
    ],
)  # fmt: skip
def test_jobs_are_read(body: bytes, jobs: list[Job]) -> None:
    assert qb_jobs.decode(body) == jobs


@pytest.mark.parametrize(
    "policy", [b'"x"', b"null", b"[]", b'{"executionTimeout":"5"}', b'{"executionTimeout":-1}',
               b'{"executionTimeout":true}', b'{"executionTimeout":1e300}', b'{"x":"\xff"}',
               b'{"x":' * 100_000 + b"1" + b"}" * 100_000],
    ids=lambda policy: repr(policy)[:30],
)  # fmt: skip
def test_a_policy_that_is_none_is_not_said(policy: bytes) -> None:
    (job,) = qb_jobs.decode(b'{"id":"a","input":1,"policy":%s}' % policy)
    assert job == Job(id="a", input=b"1")


def test_what_has_no_input_keeps_its_id_and_its_neighbours() -> None:
    body = b'[{"id":"a"},{"id":"b","input":null},{"id":"c","input":{"x":1}}]'
    jobs = qb_jobs.decode(body)
    assert [(job.id, job.input is None, bool(job.problem)) for job in jobs] == [
        ("a", True, True), ("b", True, True), ("c", False, False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "poison",
    [b"NaN", b'"\\ud800"', b'{"x":["\\ud800, ]}"]}', b'"a\nb"', b"[" * 100_000 + b"]" * 100_000,
     b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b"what", b'"\xff"', b'"\\\\"'],
    ids=lambda poison: repr(poison)[:20],
)  # fmt: skip
@pytest.mark.parametrize("around", [b'{"id": "a","input": %s ,"policy":{"executionTimeout":9}}',
                                    b'{"input":%s,"policy":{"executionTimeout":9},"id":"a"}'])  # fmt: skip
def test_a_job_that_no_decoder_takes_keeps_its_id_and_its_neighbours(
    poison: bytes, around: bytes
) -> None:
    fine = b'{"id":"z","input":[1, {"y":"]"}]}'
    poisoned = Job(id="a", input=poison, limit_s=0.009)
    assert qb_jobs.decode(around % poison) == [poisoned]
    assert qb_jobs.decode(b"[%s , %s]" % (around % poison, fine)) == [
        poisoned,
        Job(id="z", input=b'[1, {"y":"]"}]'),
    ]


def test_what_has_no_id_is_left_out() -> None:
    assert qb_jobs.decode(b'[5,null,{"input":1},{"id":null},{"id":[],"input":1}]') == []
    assert (
        qb_jobs.decode(b'[{"id":"\\ud800","input":1}, {"id":"%s","input":1}]' % (b"x" * 1001)) == []
    )


@pytest.mark.parametrize(
    "body", [b'{"id": "x", ', b"<html>", b"\xff", b"{" * 100_000, b'{"id":"x"} {', b"]"]
)
def test_an_answer_that_is_no_json(body: bytes) -> None:
    with pytest.raises(NoJobs):
        qb_jobs.decode(body)


def test_a_job_that_refers_to_itself() -> None:
    job: dict[str, Any] = {"id": "a", "input": {}}
    job["input"]["self"] = job
    found = qb_jobs.of_value(job)
    assert found is not None
    assert found.input is None
    assert "Circular" in found.problem


def test_the_load_balanced_server_never_imports_the_sdk() -> None:
    code = """import sys
from flashpool.frontends import cli, hosted, lb, serving, qb
sys.exit('runpod' in sys.modules)"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- Lines of the log ---------------------------------------------------------------------


Show = Callable[..., list[str]]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Show:
    """The messages of a job that writes these chunks."""

    def show(*chunks: bytes, limit: int = 10_000) -> list[str]:
        lines = LiveLines("job", limit)
        for chunk in chunks:
            lines.feed(chunk)
        lines.close()
        entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert {entry["requestId"] for entry in entries} <= {"job"}
        return [entry["message"] for entry in entries]

    return show


def test_lines_are_whole_whatever_the_chunks(shown: Show) -> None:
    assert shown(b"one\ntw", b"o\n\nthr", b"ee") == ["one", "two", "three"]
    assert shown("ä\r\n\u2028x\n".encode(), b"\xff\n") == ["ä", "\u2028x", "\ufffd"]


def test_lines_and_their_number_are_bounded(shown: Show) -> None:
    pieces = shown(b"x" * (2 * LINE_LIMIT + 5))
    assert [len(piece) for piece in pieces] == [LINE_LIMIT, LINE_LIMIT, 5]
    flood = shown(*[b"line\n"] * 100, limit=12)
    assert flood == ["line", "line", "li", "[its further output is not shown here]"]


# -- Modes --------------------------------------------------------------------------------


def test_modes() -> None:
    assert modes.of_queue({}) is modes.Mode.LIVE_QUEUE
    assert modes.of_queue({"FLASH_RESOURCE_NAME": "x"}) is modes.Mode.DEPLOYED_QUEUE
    assert modes.of_balanced({}) is modes.Mode.LIVE_BALANCED
    assert modes.of_balanced({"FLASH_RESOURCE_NAME": "x"}) is modes.Mode.LIVE_BALANCED
    both = {"FLASH_ENDPOINT_TYPE": "lb", "FLASH_RESOURCE_NAME": "x"}
    assert modes.of_balanced(both) is modes.Mode.DEPLOYED_BALANCED
    for wrong in ({"FLASH_ENDPOINT_TYPE": "lb"}, {"FLASH_ENDPOINT_TYPE": "other"}):
        with pytest.raises(modes.ModeError, match="FLASH_ENDPOINT_TYPE"):
            modes.of_balanced(wrong)
    with pytest.raises(modes.ModeError, match="load-balanced image"):
        modes.of_queue(both)
    for mode in (modes.Mode.DEPLOYED_QUEUE, modes.Mode.DEPLOYED_BALANCED):
        with pytest.raises(modes.ModeError, match="FLASH_RESOURCE_NAME=x"):
            modes.check_live(mode, {"FLASH_RESOURCE_NAME": "x"})


# -- Places, and reports on disk ----------------------------------------------------------


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNPOD_ENDPOINT_ID", "../end point")
    monkeypatch.setenv("RUNPOD_POD_ID", "pod")
    local = Settings.from_environ({"FLASHPOOL_LOCAL_DIR": str(tmp_path)})
    folder = qb_places.outbox_folder(local)
    assert folder.relative_to(tmp_path / "flashpool" / "outbox").parts == ("-end-point", "pod")
    (tmp_path / "volume").mkdir()
    volume = {"FLASHPOOL_VOLUME": str(tmp_path / "volume")}
    on_volume = Settings.from_environ(volume)
    assert qb_places.outbox_folder(on_volume).is_relative_to(tmp_path / "volume")
    stated = Settings.from_environ({**volume, "FLASHPOOL_STATE_DIR": str(tmp_path / "s")})
    assert qb_places.outbox_folder(stated).is_relative_to(tmp_path / "s")
    assert qb_places.spill_folder(on_volume) == tmp_path / "volume" / "flashpool" / "results"


def test_reports_on_disk_come_back_as_they_were(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "a" / "b")
    assert list(outbox.waiting(60)) == []
    reports = [
        Report(job_id=name, body=b'{"x":\n"%d"}' % n, streamed=bool(n))
        for n, name in enumerate(("../../etc", "ä" * 300, "job\nid"))
    ]
    for report in reports:
        outbox.keep(report)
    assert sorted(outbox.waiting(60), key=lambda one: one.body) == reports
    outbox.drop("../../etc")
    outbox.drop("never there")
    assert len(list(outbox.waiting(60))) == 2
    # Half of a file is none, and does not hide the others.
    (outbox.folder / "broken.json").write_bytes(b'{"job_id"')
    (outbox.folder / "half.new").write_bytes(b"x")
    assert len(list(outbox.waiting(60))) == 2
    assert not (outbox.folder / "half.new").exists()


def test_a_full_disk_keeps_no_half_of_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        Outbox(tmp_path).keep(Report(job_id="a", body=b"{}"))
    assert not os.listdir(tmp_path)


def test_a_report_is_whole_whoever_else_writes_it_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is slow to be answered, and the process leaves: both have it written."""
    outbox, twice = Outbox(tmp_path), threading.Barrier(2)
    sync = os.fsync

    def fsync(fd: int) -> None:
        sync(fd)
        twice.wait(10)

    monkeypatch.setattr(os, "fsync", fsync)
    report = Report(job_id="a", body=b"{}")
    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(outbox.keep, report) for _ in range(2)]:
            done.result()
    assert list(outbox.waiting(60)) == [report]
    assert len(os.listdir(tmp_path)) == 1


def test_reports_that_are_too_old_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(tmp_path)
    outbox.keep(Report(job_id="a", body=b"{}"))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert list(outbox.waiting(60)) == []
    assert not os.listdir(tmp_path)


def test_what_lost_workers_left_is_deleted_some_day(tmp_path: Path) -> None:
    ours, lost, young = (Outbox(tmp_path / name) for name in ("ours", "lost", "young"))
    for outbox in (ours, lost, young):
        outbox.keep(Report(job_id="a", body=b"{}"))
    (lost.folder / "half.new").touch()
    for path in lost.folder.iterdir():
        os.utime(path, (1, 1))
    ours.forget_others(60)
    assert not lost.folder.exists()
    assert len(list(ours.waiting(60))) == len(list(young.waiting(60))) == 1


def test_a_volume_that_cannot_be_listed_is_no_reason_not_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(_self: Path, _pattern: str) -> None:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(Path, "glob", stale)
    outbox = Outbox(tmp_path)
    assert list(outbox.waiting(60)) == []
    outbox.forget_others(60)


# -- Delivery -----------------------------------------------------------------------------


class Platform:
    """Answers posts as it is told to, the last answer again and again."""

    streams = True

    def __init__(self, *verdicts: Verdict) -> None:
        self.verdicts = list(verdicts)
        self.posts: list[Any] = []

    def _next(self) -> Verdict:
        return self.verdicts.pop(0) if len(self.verdicts) > 1 else self.verdicts[0]

    async def report(self, report: Report) -> Verdict:
        self.posts.append(report)
        await asyncio.sleep(0)
        return self._next()

    async def item(self, job_id: str, body: bytes) -> Verdict:
        self.posts.append(json.loads(body))
        await asyncio.sleep(0)
        return self._next()

    async def progress(self, job_id: str, output: dict[str, object]) -> Verdict:
        self.posts.append(output)
        await asyncio.sleep(0.01)
        return self._next()


def delivered(
    platform: Platform, folder: Path, limit_s: float = 60.0
) -> tuple[list[Report], list[str]]:
    """What was posted, and what is on disk in the end."""

    async def deliver() -> None:
        shrink: Callable[[Report], Report] = lambda report: replace(report, body=b"small")  # noqa: E731
        reports = Reports(platform, Outbox(folder), limit_s, shrink)  # type: ignore[arg-type]
        await asyncio.wait_for(reports.deliver(Report(job_id="a", body=b"large")), 20)
        assert len(reports) == 0

    asyncio.run(deliver())
    return platform.posts, os.listdir(folder) if folder.exists() else []


def test_a_report_that_is_taken_touches_no_disk(tmp_path: Path) -> None:
    posts, kept = delivered(Platform(Verdict.TAKEN), tmp_path / "outbox")
    assert len(posts) == 1
    assert not (tmp_path / "outbox").exists()
    assert kept == []


def test_a_report_is_offered_until_it_is_taken(tmp_path: Path) -> None:
    platform = Platform(Verdict.REFUSED, Verdict.UNREACHABLE, Verdict.REFUSED, Verdict.TAKEN)
    posts, kept = delivered(platform, tmp_path)
    assert len(posts) == 4
    assert kept == []


def test_what_is_gone_is_let_go(tmp_path: Path) -> None:
    assert len(delivered(Platform(Verdict.GONE), tmp_path)[0]) == 1
    # One 404 may be a mistake of something in between.
    posts, kept = delivered(Platform(Verdict.UNKNOWN), tmp_path)
    assert len(posts) == 4
    assert kept == []


def test_a_report_is_given_up_in_the_end(tmp_path: Path) -> None:
    posts, kept = delivered(Platform(Verdict.REFUSED), tmp_path, limit_s=0.3)
    assert 2 <= len(posts) <= 4
    assert kept == []


def test_a_report_that_is_too_large_is_replaced(tmp_path: Path) -> None:
    posts, _ = delivered(Platform(Verdict.TOO_LARGE, Verdict.TAKEN), tmp_path)
    assert [post.body for post in posts] == [b"large", b"small"]


def test_a_disk_that_cannot_be_written_does_not_stop_delivery(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    platform = Platform(Verdict.REFUSED, Verdict.TAKEN)
    posts = []

    async def deliver() -> None:
        outbox = Outbox(tmp_path / "file" / "outbox")
        reports = Reports(platform, outbox, 60, lambda report: report)  # type: ignore[arg-type]
        await reports.deliver(Report(job_id="a", body=b"x"))
        posts.extend(platform.posts)

    asyncio.run(deliver())
    assert len(posts) == 2


# -- Items and progress -------------------------------------------------------------------


def sent(platform: Platform, *items: bytes) -> int:
    """Credits given for these."""
    given = []

    async def send() -> None:
        stream = Items("a", platform, lambda: given.append(1))  # type: ignore[arg-type]
        for item in items:
            stream.put(item)
        await stream.close(5)

    asyncio.run(send())
    return len(given)


def test_items_arrive_in_order_and_each_gives_credit() -> None:
    platform = Platform(Verdict.TAKEN)
    assert sent(platform, b"1", b'{"a":2}', b'"three"', b"true", b"1234") == 5
    assert platform.posts == [1, {"a": 2}, "three", True, 1234]


def test_a_pickled_item_is_text_and_a_spoilt_one_is_told() -> None:
    platform = Platform(Verdict.TAKEN)
    pickled = base64.b64encode(pickle.dumps({1}, protocol=5))
    sent(platform, pickled, b"{]", b"\xff", b"1" * (CHUNK_LIMIT + 1))
    assert platform.posts[0] == pickled.decode()
    assert [one["success"] for one in platform.posts[1:]] == [False, False, False]
    assert platform.posts[3]["error_type"] == "ResultTooLarge"


def test_one_answer_that_the_job_is_unknown_loses_no_item() -> None:
    platform = Platform(Verdict.UNKNOWN, Verdict.TAKEN)
    assert sent(platform, b"1", b"2") == 2
    assert platform.posts == [1, 1, 2]


def test_items_nobody_wants_are_dropped_and_the_generator_goes_on() -> None:
    platform = Platform(Verdict.GONE)
    assert sent(platform, b"1", b"2", b"3") == 3
    assert platform.posts == [1]


def test_progress_is_the_latest_and_ends() -> None:
    platform = Platform(Verdict.TAKEN)

    async def tell() -> None:
        progress = Progress("a", platform)  # type: ignore[arg-type]
        for number in range(100):
            progress.tell("build", str(number))
        await asyncio.sleep(0.05)
        progress.tell("run")
        await progress.close()

    asyncio.run(tell())
    assert [one["message"] for one in platform.posts] == ["99"]


def test_progress_is_never_told_after_the_end() -> None:
    """A build goes on for others, and tells of itself."""
    platform = Platform(Verdict.TAKEN)

    async def tell() -> None:
        progress = Progress("a", platform)  # type: ignore[arg-type]
        await progress.close()
        progress.tell("build", "late")
        await asyncio.sleep(0.05)

    asyncio.run(tell())
    assert platform.posts == []


# -- Reports ------------------------------------------------------------------------------


def report_of(outcome: Outcome, limit: int = 10_000, spill: Spill | None = None) -> dict[str, Any]:
    service = Service(None, None, result_limit=1 << 30)  # type: ignore[arg-type]
    results = Results(service, limit, spill)
    report = asyncio.run(results.report("job", outcome, streamed=False))
    assert len(report.body) <= limit
    decoded: dict[str, Any] = json.loads(report.body)
    return decoded


def test_a_result_has_no_error_and_a_failure_has() -> None:
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
def test_an_output_that_is_too_large_is_cut_and_the_result_stays(
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


def test_a_job_without_an_environment_tells_how_that_came() -> None:
    error = EnvironmentError("no", kind="BuildFailed")
    error.told = b"resolving\n"
    output = report_of(of_error(error))["output"]
    assert output["stdout"] == "resolving\n"
    assert output["receipt"]["environment"] is None
    assert output["receipt"]["environment_origin"] == "failed"


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


def test_a_volume_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outcome = Outcome(body=b'"%s"' % (b"x" * 20_000), format="json")
    found = report_of(outcome, spill=Spill(tmp_path / "file" / "x", 60))
    assert found["output"]["error_type"] == "ResultTooLarge"
    assert "cannot be written" in found["error"]


def test_old_spilled_results_are_deleted(tmp_path: Path) -> None:
    old, young = tmp_path / "old.pkl", tmp_path / "young.pkl"
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
