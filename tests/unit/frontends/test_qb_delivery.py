"""From a report to the platform: on disk, posted again; items and progress before it."""

import asyncio
import base64
import json
import os
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flashpool.frontends import qb_places
from flashpool.frontends.qb_outbox import Outbox, Report
from flashpool.frontends.qb_posts import Verdict
from flashpool.frontends.qb_reports import Reports
from flashpool.frontends.qb_stream import CHUNK_LIMIT, Items, Progress
from flashpool.pool.settings import Settings

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
        twice.wait(30)

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
    posts, kept = delivered(Platform(Verdict.REFUSED), tmp_path, limit_s=1.0)
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
        await progress.close(5)

    asyncio.run(tell())
    assert [one["message"] for one in platform.posts] == ["99"]


def test_progress_that_hangs_does_not_hold_up_a_report_that_is_due() -> None:
    class Silent(Platform):
        async def progress(self, job_id: str, output: dict[str, object]) -> Verdict:
            await asyncio.Event().wait()
            raise AssertionError

    async def tell() -> float:
        progress = Progress("a", Silent(Verdict.TAKEN))  # type: ignore[arg-type]
        progress.tell("run")
        await asyncio.sleep(0)
        began = time.monotonic()
        await progress.close(0.1)
        return time.monotonic() - began

    assert asyncio.run(tell()) < 1


def test_progress_is_never_told_after_the_end() -> None:
    """A build goes on for others, and tells of itself."""
    platform = Platform(Verdict.TAKEN)

    async def tell() -> None:
        progress = Progress("a", platform)  # type: ignore[arg-type]
        await progress.close(5)
        progress.tell("build", "late")
        await asyncio.sleep(0.05)

    asyncio.run(tell())
    assert platform.posts == []
