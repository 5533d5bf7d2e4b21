"""Reports on disk: where they are, whose they are, and what happens when the disk hangs."""

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


def test_the_settings_decide_where_reports_and_results_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_reports_are_read_from_disk_as_they_were_written(tmp_path: Path) -> None:
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
    # An incomplete file is ignored, and does not hide the others.
    half = outbox.folder / f"{'0' * 32}.01234567.new"
    half.with_name(f"{'1' * 32}.json").write_bytes(b'{"job_id"')
    half.write_bytes(b"x")
    assert len(list(outbox.waiting(60))) == 2
    assert not half.exists()


def test_a_full_disk_leaves_no_partial_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        Outbox(tmp_path, KEY).keep(JobReport(job_id="a", body=b"{}"))
    assert not os.listdir(tmp_path)


def test_a_report_written_by_two_threads_at_once_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow delivery and the stop of the process may both write one report."""
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
        # As after a restart with the machine's clock ahead; the file system's clock has not jumped.
        patch.setattr(time, "time", lambda: now + 7200)
        assert len(list(outbox.waiting(60))) == 1
    (kept,) = tmp_path.iterdir()
    os.utime(kept, (now - 61, now - 61))
    assert list(outbox.waiting(60)) == []
    assert not os.listdir(tmp_path)


def test_old_reports_of_lost_workers_are_deleted(tmp_path: Path) -> None:
    ours, lost, young = (Outbox(tmp_path / name, KEY) for name in ("ours", "lost", "young"))
    for outbox in (ours, lost, young):
        outbox.keep(JobReport(job_id="a", body=b"{}"))
    (lost.folder / f"{'0' * 32}.01234567.new").touch()
    for path in lost.folder.iterdir():
        os.utime(path, (1, 1))
    ours.forget_others(60)
    assert not lost.folder.exists()
    assert len(list(ours.waiting(60))) == len(list(young.waiting(60))) == 1


def test_workers_without_a_pod_name_have_a_folder_each(tmp_path: Path) -> None:
    def worker() -> Outbox:
        return Outbox(tmp_path / "worker", KEY, is_named=False)

    half = f"{'0' * 32}.01234567.new"
    first, second = worker(), worker()
    for outbox, name in ((first, "a"), (second, "b")):
        outbox.keep(JobReport(job_id=name, body=b"{}"))
        # A report that its worker is still writing.
        (outbox.folder / half).touch()
    third = worker()
    assert list(third.waiting(60)) == []
    third.forget_others(60)
    assert (first.folder / half).exists()
    second.close()
    # The second worker has exited; the next one takes over its reports.
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


def test_the_folder_of_a_killed_worker_goes_to_the_next_worker(tmp_path: Path) -> None:
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


def test_without_file_locks_each_unnamed_worker_has_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(_fd: int, _how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    outboxes = [Outbox(tmp_path / "worker", KEY, is_named=False) for _ in range(2)]
    for outbox in outboxes:
        outbox.keep(JobReport(job_id="a", body=b"{}"))
    assert outboxes[0].folder != outboxes[1].folder


def test_a_volume_that_cannot_be_listed_does_not_prevent_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(*_args: object, **_options: object) -> int:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(volume_files.os, "open", stale)
    outbox = Outbox(tmp_path, KEY)
    assert list(outbox.waiting(60)) == []
    outbox.forget_others(60)


# -- Jobs that are handed out again -------------------------------------------------------


def test_a_cut_off_report_is_withdrawn_when_its_job_runs_again(tmp_path: Path) -> None:
    """The platform hands the job out again, to the process that resumed its report."""
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
        # The report stays on disk in case this process dies now.
        assert cut_off in outbox.waiting(60)
        platform.posts.clear()
        platform.verdicts = [Verdict.TAKEN]
        await reports.deliver(JobReport(job_id="cut", body=b"its result"))
        # An accepted report is deleted afterwards, unless the process exits first.
        await until(lambda: not len(reports) and not os.listdir(tmp_path))

    asyncio.run(asyncio.wait_for(go_on(), 20))
    assert sorted(post.body for post in platform.posts) == [b"its result", b"the end"]


def test_a_new_report_replaces_a_withdrawn_one(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, KEY)
    outbox.keep(JobReport(job_id="a", body=b"cut off", cut_off=True))
    [kept] = tmp_path.glob("*.json")
    result = JobReport(job_id="a", body=b"its result")

    async def go_on() -> None:
        reports = reports_of(Platform(Verdict.REFUSED), outbox)
        await reports.resume(Names())
        await reports.withdraw("a")
        delivering = asyncio.ensure_future(reports.deliver(result))
        # Listing the outbox would delete the file that is still being written.
        await until(lambda: b"its result" in kept.read_bytes())
        assert list(outbox.waiting(60)) == [result]
        delivering.cancel()

    asyncio.run(asyncio.wait_for(go_on(), 20))


# -- A disk that hangs --------------------------------------------------------------------


class Hanging(Outbox):
    """An outbox on a disk that hangs until `back` is set."""

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


def test_a_disk_that_hangs_delays_neither_start_nor_stop(
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


def test_reports_on_a_slow_disk_are_resumed_later(hanging: Hanging) -> None:
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


def test_a_report_written_after_its_delivery_is_deleted(hanging: Hanging) -> None:
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


def test_without_an_answer_of_the_volume_local_disk_is_used(
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
