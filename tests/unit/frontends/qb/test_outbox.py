"""Reports on disk: where they are, whose they are, and what is done of a disk that hangs."""

import asyncio
import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flashpool.envs.store import volume_files
from flashpool.frontends import state_places
from flashpool.frontends.qb import delivery, paths
from flashpool.frontends.qb.outbox import JobReport, Outbox
from flashpool.frontends.qb.platform_posts import Verdict
from flashpool.frontends.settings.table import Settings
from support.frontends.qb_stand_in import Names, Platform, reports_of
from support.waiting import until

KEY = b"key"


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNPOD_ENDPOINT_ID", "../end point")
    monkeypatch.setenv("RUNPOD_POD_ID", "pod")
    local = Settings.from_environ({"FLASHPOOL_LOCAL_DIR": str(tmp_path)})
    folder = paths.outbox_folder(local)
    assert folder.relative_to(tmp_path / "flashpool" / "outbox").parts == ("-end-point", "pod")
    (tmp_path / "volume").mkdir()
    volume = {"FLASHPOOL_VOLUME": str(tmp_path / "volume")}
    on_volume = Settings.from_environ(volume)
    assert paths.outbox_folder(on_volume).is_relative_to(tmp_path / "volume")
    stated = Settings.from_environ({**volume, "FLASHPOOL_STATE_DIR": str(tmp_path / "s")})
    assert paths.outbox_folder(stated).is_relative_to(tmp_path / "s")
    assert paths.spill_folder(on_volume) == tmp_path / "volume" / "flashpool" / "results"


def test_reports_on_disk_come_back_as_they_were(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "a" / "b", KEY)
    assert list(outbox.waiting(60)) == []
    reports = [
        JobReport(job_id=name, body=b'{"x":\n"%d"}' % n, streamed=bool(n))
        for n, name in enumerate(("../../etc", "ä" * 300, "job\nid"))
    ]
    for report in reports:
        outbox.keep(report)
    assert sorted(outbox.waiting(60), key=lambda one: one.body) == reports
    outbox.drop("../../etc")
    outbox.drop("never there")
    assert len(list(outbox.waiting(60))) == 2
    # Half of a file is none, and does not hide the others.
    half = outbox.folder / f"{'0' * 32}.01234567.new"
    half.with_name(f"{'1' * 32}.json").write_bytes(b'{"job_id"')
    half.write_bytes(b"x")
    assert len(list(outbox.waiting(60))) == 2
    assert not half.exists()


def test_a_full_disk_keeps_no_half_of_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        Outbox(tmp_path, KEY).keep(JobReport(job_id="a", body=b"{}"))
    assert not os.listdir(tmp_path)


def test_a_report_is_whole_whoever_else_writes_it_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is slow to be answered, and the process leaves: both have it written."""
    outbox, twice = Outbox(tmp_path, KEY), threading.Barrier(2)
    sync = os.fsync

    def fsync(fd: int) -> None:
        sync(fd)
        twice.wait(30)

    monkeypatch.setattr(os, "fsync", fsync)
    report = JobReport(job_id="a", body=b"{}")
    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(outbox.keep, report) for _ in range(2)]:
            done.result()
    assert list(outbox.waiting(60)) == [report]
    assert len(os.listdir(tmp_path)) == 1


def test_reports_that_are_too_old_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(tmp_path, KEY)
    outbox.keep(JobReport(job_id="a", body=b"{}"))
    now = time.time()
    with monkeypatch.context() as patch:
        # As after a restart, on a machine whose clock is ahead: the file system's has not jumped.
        patch.setattr(time, "time", lambda: now + 7200)
        assert len(list(outbox.waiting(60))) == 1
    (kept,) = tmp_path.iterdir()
    os.utime(kept, (now - 61, now - 61))
    assert list(outbox.waiting(60)) == []
    assert not os.listdir(tmp_path)


def test_what_lost_workers_left_is_deleted_some_day(tmp_path: Path) -> None:
    ours, lost, young = (Outbox(tmp_path / name, KEY) for name in ("ours", "lost", "young"))
    for outbox in (ours, lost, young):
        outbox.keep(JobReport(job_id="a", body=b"{}"))
    (lost.folder / f"{'0' * 32}.01234567.new").touch()
    for path in lost.folder.iterdir():
        os.utime(path, (1, 1))
    ours.forget_others(60)
    assert not lost.folder.exists()
    assert len(list(ours.waiting(60))) == len(list(young.waiting(60))) == 1


def test_workers_without_a_name_have_a_folder_each(tmp_path: Path) -> None:
    def worker() -> Outbox:
        return Outbox(tmp_path / "worker", KEY, is_named=False)

    half = f"{'0' * 32}.01234567.new"
    first, second = worker(), worker()
    for outbox, name in ((first, "a"), (second, "b")):
        outbox.keep(JobReport(job_id=name, body=b"{}"))
        # Half of a report, on which somebody is at work.
        (outbox.folder / half).touch()
    third = worker()
    assert list(third.waiting(60)) == []
    third.forget_others(60)
    assert (first.folder / half).exists()
    second.close()
    # It has ended: the next one goes on with what it has left.
    fourth = worker()
    assert [report.job_id for report in fourth.waiting(60)] == ["b"]
    assert [report.job_id for report in first.waiting(60)] == ["a"]
    for outbox in (first, third, fourth):
        outbox.close()


_OWNER = """
import sys
from pathlib import Path
from flashpool.frontends.qb.outbox import Outbox, JobReport

outbox = Outbox(Path(sys.argv[1]), b"key", is_named=False)
outbox.keep(JobReport(job_id="a", body=b"{}"))
print(outbox.folder.name, flush=True)
sys.stdin.read()
"""


def test_the_folder_of_a_killed_worker_is_the_next_one_s(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _OWNER, str(tmp_path / "worker")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        try:
            assert owner.stdout
            assert owner.stdout.readline() == b"worker\n"
            beside = Outbox(tmp_path / "worker", KEY, is_named=False)
            assert list(beside.waiting(60)) == []
            beside.close()
        finally:
            owner.kill()
    heir = Outbox(tmp_path / "worker", KEY, is_named=False)
    assert [report.job_id for report in heir.waiting(60)] == ["a"]
    heir.close()


def test_where_there_are_no_locks_a_worker_without_a_name_is_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(_fd: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    outboxes = [Outbox(tmp_path / "worker", KEY, is_named=False) for _ in range(2)]
    for outbox in outboxes:
        outbox.keep(JobReport(job_id="a", body=b"{}"))
    assert outboxes[0].folder != outboxes[1].folder


def test_a_volume_that_cannot_be_listed_is_no_reason_not_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(*_args: object, **_options: object) -> int:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(volume_files.os, "open", stale)
    outbox = Outbox(tmp_path, KEY)
    assert list(outbox.waiting(60)) == []
    outbox.forget_others(60)


# -- Jobs that are handed out again -------------------------------------------------------


def test_what_was_only_cut_off_gives_way_to_its_job(tmp_path: Path) -> None:
    """The same job is handed out again, to the process that goes on with its report."""
    outbox = Outbox(tmp_path, KEY)
    cut_off = JobReport(job_id="cut", body=b"cut off", cut_off=True)
    for report in (cut_off, JobReport(job_id="ended", body=b"the end")):
        outbox.keep(report)
    platform, names = Platform(Verdict.REFUSED), Names()

    async def go_on() -> None:
        reports = reports_of(platform, outbox)
        await reports.resume(names)
        assert set(names) == {"cut", "ended"}
        assert reports.gives_way("cut")
        assert not reports.gives_way("ended")
        await reports.withdraw("cut")
        assert set(names) == {"ended"}
        assert "cut" not in reports
        # If this process dies now, that is still all there is to say.
        assert cut_off in outbox.waiting(60)
        platform.posts.clear()
        platform.verdicts = [Verdict.TAKEN]
        await reports.deliver(JobReport(job_id="cut", body=b"its result"))
        # A report that was taken is deleted after that, unless the process ends before.
        await until(lambda: not len(reports) and not os.listdir(tmp_path))

    asyncio.run(asyncio.wait_for(go_on(), 20))
    assert sorted(post.body for post in platform.posts) == [b"its result", b"the end"]


def test_a_new_report_takes_the_place_of_one_that_gave_way(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, KEY)
    outbox.keep(JobReport(job_id="a", body=b"cut off", cut_off=True))
    [kept] = tmp_path.glob("*.json")
    result = JobReport(job_id="a", body=b"its result")

    async def go_on() -> None:
        reports = reports_of(Platform(Verdict.REFUSED), outbox)
        await reports.resume(Names())
        await reports.withdraw("a")
        delivering = asyncio.ensure_future(reports.deliver(result))
        # Not by listing: that deletes what is written only half by now.
        await until(lambda: b"its result" in kept.read_bytes())
        assert list(outbox.waiting(60)) == [result]
        delivering.cancel()

    asyncio.run(asyncio.wait_for(go_on(), 20))


# -- A disk that hangs --------------------------------------------------------------------


class Hanging(Outbox):
    """On a disk that says nothing before `back` is set."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, KEY)
        self.back = threading.Event()

    def keep(self, report: JobReport) -> None:
        self.back.wait(30)
        super().keep(report)

    def waiting(self, older_than_s: float) -> Iterator[JobReport]:
        self.back.wait(30)
        return super().waiting(older_than_s)


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    monkeypatch.setattr(delivery, "_START_S", 0.1)
    monkeypatch.setattr(delivery, "_DISK_S", 0.1)
    outbox = Hanging(tmp_path)
    yield outbox
    outbox.back.set()


def test_a_disk_that_hangs_holds_up_neither_start_nor_end(
    hanging: Hanging, caplog: pytest.LogCaptureFixture
) -> None:
    async def life() -> None:
        reports = reports_of(Platform(Verdict.REFUSED), hanging)
        await reports.resume(Names())
        sending = [
            asyncio.ensure_future(reports.deliver(JobReport(job_id=name, body=b"x")))
            for name in "abcdefgh"
        ]
        await asyncio.sleep(0)
        await reports.save()
        for task in sending:
            task.cancel()
        await reports.close()

    began = time.monotonic()
    asyncio.run(life())
    assert time.monotonic() - began < 5
    assert "Cannot look for results" in caplog.text
    assert "cannot be saved in" in caplog.text
    assert "has not answered within" in caplog.text


def test_what_a_slow_disk_has_is_gone_on_with_later(hanging: Hanging) -> None:
    for name in ("a", "runs again"):
        Outbox(hanging.folder, KEY).keep(JobReport(job_id=name, body=name.encode()))
    platform = Platform(Verdict.TAKEN)

    async def life() -> None:
        reports = reports_of(platform, hanging)
        await reports.resume(Names(), {"runs again"})
        assert platform.posts == []
        hanging.back.set()
        await until(lambda: platform.posts)
        await reports.deliver(JobReport(job_id="runs again", body=b"result"))

    asyncio.run(asyncio.wait_for(life(), 20))
    assert [post.body for post in platform.posts] == [b"a", b"result"]
    assert not os.listdir(hanging.folder)


def test_a_report_that_is_written_too_late_is_deleted(hanging: Hanging) -> None:
    async def life() -> None:
        reports = reports_of(Platform(Verdict.REFUSED, Verdict.TAKEN), hanging)
        await reports.deliver(JobReport(job_id="a", body=b"x"))

    asyncio.run(asyncio.wait_for(life(), 20))
    hanging.back.set()
    end = time.monotonic() + 20
    while any(thread.name == "flashpool-queue-disk" for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert not os.listdir(hanging.folder)


def test_a_volume_that_hangs_counts_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = threading.Event()
    monkeypatch.setattr(state_places, "_ANSWER_S", 0.1)
    variables = {"FLASHPOOL_VOLUME": str(tmp_path / "v"), "FLASHPOOL_LOCAL_DIR": str(tmp_path)}
    settings = Settings.from_environ(variables)
    monkeypatch.setattr(os, "access", lambda *_: back.wait(30))
    try:
        folder = paths.outbox_folder(settings)
    finally:
        back.set()
    assert folder.is_relative_to(tmp_path / "flashpool")
