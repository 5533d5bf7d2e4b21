"""Delivery of reports to the platform, with retries; items and progress before them."""

import asyncio
import base64
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from flashpool.frontends.qb.delivery import ReportDelivery
from flashpool.frontends.qb.outbox import JobReport, Outbox
from flashpool.frontends.qb.platform_posts import Verdict
from flashpool.frontends.qb.streaming import CHUNK_LIMIT, JobItems, Progress
from support.frontends.qb_stand_in import Platform

KEY = b"key"

# -- Delivery -----------------------------------------------------------------------------


def delivered(
    platform: Platform, folder: Path, limit_s: float = 60.0
) -> tuple[list[JobReport], list[str]]:
    """Deliver one report; return what was posted and what is on disk afterwards."""

    async def deliver() -> None:
        shrink: Callable[[JobReport], JobReport] = lambda report: replace(report, body=b"small")  # noqa: E731
        reports = ReportDelivery(platform, Outbox(folder, KEY), limit_s, shrink)  # type: ignore[arg-type]
        await asyncio.wait_for(reports.deliver(JobReport(job_id="a", body=b"large")), 20)
        assert len(reports) == 0

    asyncio.run(deliver())
    return platform.posts, os.listdir(folder) if folder.exists() else []


def test_a_report_accepted_at_once_is_never_written_to_disk(tmp_path: Path) -> None:
    posts, kept = delivered(Platform(Verdict.TAKEN), tmp_path / "outbox")
    assert len(posts) == 1
    assert not (tmp_path / "outbox").exists()
    assert kept == []


def test_a_report_is_posted_until_it_is_accepted(tmp_path: Path) -> None:
    platform = Platform(Verdict.REFUSED, Verdict.UNREACHABLE, Verdict.REFUSED, Verdict.TAKEN)
    posts, kept = delivered(platform, tmp_path)
    assert len(posts) == 4
    assert kept == []


def test_reports_of_jobs_that_are_gone_are_dropped(tmp_path: Path) -> None:
    assert len(delivered(Platform(Verdict.GONE), tmp_path)[0]) == 1
    # A single 404 may come from a proxy, so it takes several.
    posts, kept = delivered(Platform(Verdict.UNKNOWN), tmp_path)
    assert len(posts) == 4
    assert kept == []


def test_a_report_is_given_up_after_its_limit(tmp_path: Path) -> None:
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
        outbox = Outbox(tmp_path / "file" / "outbox", KEY)
        reports = ReportDelivery(platform, outbox, 60, lambda report: report)  # type: ignore[arg-type]
        await reports.deliver(JobReport(job_id="a", body=b"x"))
        posts.extend(platform.posts)

    asyncio.run(deliver())
    assert len(posts) == 2


# -- Items and progress -------------------------------------------------------------------


def sent(platform: Platform, *items: bytes) -> int:
    """Send these items; return the credits given."""
    given = []

    async def send() -> None:
        stream = JobItems("a", platform, lambda: given.append(1))  # type: ignore[arg-type]
        for item in items:
            stream.put(item)
        await stream.close(5)

    asyncio.run(send())
    return len(given)


def test_items_arrive_in_order_and_each_gives_credit() -> None:
    platform = Platform(Verdict.TAKEN)
    assert sent(platform, b"1", b'{"a":2}', b'"three"', b"true", b"1234") == 5
    assert platform.posts == [1, {"a": 2}, "three", True, 1234]


def test_pickled_items_are_posted_as_text_and_malformed_ones_as_errors() -> None:
    platform = Platform(Verdict.TAKEN)
    pickled = base64.b64encode(pickle.dumps({1}, protocol=5))
    sent(platform, pickled, b"{]", b"\xff", b"1" * (CHUNK_LIMIT + 1))
    assert platform.posts[0] == pickled.decode()
    assert [one["success"] for one in platform.posts[1:]] == [False, False, False]
    assert platform.posts[3]["error_type"] == "ResultTooLarge"


@pytest.mark.parametrize(("begin", "end"), [(b"gA", b""), (b'"', b'"')], ids=["pickle", "json"])
def test_the_largest_item_fits_into_its_post(begin: bytes, end: bytes) -> None:
    platform = Platform(Verdict.TAKEN)
    sizes = range(CHUNK_LIMIT - 15, CHUNK_LIMIT + 1)
    sent(platform, *(begin.ljust(size - len(end), b"1") + end for size in sizes))
    posts = [msgspec.json.encode({"output": item}) for item in platform.posts]
    assert CHUNK_LIMIT - 2 <= max(map(len, posts)) <= CHUNK_LIMIT
    assert b"ResultTooLarge" in posts[-1]


def test_a_single_404_loses_no_item() -> None:
    platform = Platform(Verdict.UNKNOWN, Verdict.TAKEN)
    assert sent(platform, b"1", b"2") == 2
    assert platform.posts == [1, 1, 2]


def test_items_of_a_job_that_is_gone_are_dropped_with_credit() -> None:
    platform = Platform(Verdict.GONE)
    assert sent(platform, b"1", b"2", b"3") == 3
    assert platform.posts == [1]


def test_only_the_latest_progress_is_posted() -> None:
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


def test_progress_is_never_posted_after_the_report() -> None:
    """A build may continue for other jobs, and report progress."""
    platform = Platform(Verdict.TAKEN)

    async def tell() -> None:
        progress = Progress("a", platform)  # type: ignore[arg-type]
        await progress.close(5)
        progress.tell("build", "late")
        await asyncio.sleep(0.05)

    asyncio.run(tell())
    assert platform.posts == []
