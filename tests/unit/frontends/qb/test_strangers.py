"""Untrusted files among reports and results are not read, posted or followed."""

import asyncio
import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashpool.frontends.qb import outbox as module
from flashpool.frontends.qb.outbox import JobReport, Outbox
from flashpool.frontends.qb.paths import report_key
from flashpool.frontends.qb.platform_posts import Verdict
from flashpool.frontends.qb.spill import Spill
from flashpool.frontends.settings.table import Settings
from flashpool.pool.calls import Outcome
from support.frontends.qb_stand_in import Names, Platform, reports_of
from support.waiting import until

KEY = b"key"
A = JobReport(job_id="a", body=b"{}")
#: The file name of that job's report.
NAME = "ca978112ca1bbdcafac231b39a23dc4d.json"
LONG_AGO = (1, 1)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """Files of this machine, which planted links on the volume point to."""
    made = tmp_path / "victim"
    made.mkdir()
    for name in ("precious.json", "half.new", f"{'0' * 32}.01234567.new", NAME, "j-01234567.pkl"):
        (made / name).write_text("precious")
        os.utime(made / name, LONG_AGO)
    return made


def whole(victim: Path) -> bool:
    return {path.read_text() for path in victim.iterdir()} == {"precious"} and len(
        os.listdir(victim)
    ) == 5


def worker(place: Path, name: str = "pod", key: bytes = KEY) -> Outbox:
    return Outbox(place / "outbox" / "endpoint" / name, key)


@pytest.mark.parametrize("level", ["outbox", "outbox/endpoint", "outbox/endpoint/pod"])
def test_links_in_the_path_of_an_outbox_are_not_followed(
    level: str, tmp_path: Path, victim: Path
) -> None:
    link = tmp_path / level
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(victim)
    ours = worker(tmp_path)
    assert list(ours.waiting(60)) == []
    ours.forget_others(60)
    ours.drop("a")
    ours.keep(A)
    assert list(ours.waiting(60)) == [A]
    assert not link.is_symlink()
    assert whole(victim)


def test_deleting_reports_of_lost_workers_follows_no_links(tmp_path: Path, victim: Path) -> None:
    ours = worker(tmp_path)
    ours.keep(A)
    endpoint = ours.folder.parent
    (endpoint / "lost").symlink_to(victim)
    (endpoint / "other").mkdir()
    for name in ("notes.txt", "precious.json", "half.new"):
        (endpoint / "other" / name).write_text("precious")
    (endpoint / "other" / NAME).symlink_to(victim / NAME)
    for path in (endpoint / "other").iterdir():
        os.utime(path, LONG_AGO, follow_symlinks=False)
    (endpoint / "file").touch()
    os.mkfifo(endpoint / "pipe")
    ours.forget_others(60)
    assert whole(victim)
    assert len(os.listdir(endpoint / "other")) == 4, "files of others' names are others'"


def sparse(path: Path, _victim: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def sparse_but_small(path: Path, _victim: Path) -> None:
    path.touch()
    os.truncate(path, 200 << 20)


def device(path: Path, _victim: Path) -> None:
    path.symlink_to("/dev/zero")


def link(path: Path, victim: Path) -> None:
    path.symlink_to(victim / NAME)


def pipe(path: Path, _victim: Path) -> None:
    os.mkfifo(path)


def directory(path: Path, _victim: Path) -> None:
    (path / "inner").mkdir(parents=True)


def deep(path: Path, _victim: Path) -> None:
    path.write_text("[" * 50_000)


def odd(path: Path, _victim: Path) -> None:
    path.write_text(json.dumps({"job_id": "a", "streamed": False, "kept_at": 10**400}) + "\n{}")


Plant = Callable[[Path, Path], None]
PLANTS = [sparse, sparse_but_small, device, link, pipe, directory, deep, odd]


@pytest.mark.parametrize("plant", PLANTS)
def test_malformed_reports_are_ignored(
    plant: Plant, tmp_path: Path, victim: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = worker(tmp_path)
    ours.keep(JobReport(job_id="b", body=b"result"))
    plant(ours.folder / NAME, victim)
    assert [report.job_id for report in ours.waiting(60)] == ["b"]
    ours.keep(A)
    assert {report.job_id for report in ours.waiting(60)} == {"a", "b"}
    assert whole(victim)
    assert "Traceback" not in caplog.text


def forged(outbox: Outbox, **changes: Any) -> None:
    head = {"job_id": "a", "streamed": False, "kept_at": time.time(), "cut_off": False, "mac": ""}
    outbox.folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**head, **changes}) + '\n{"output":{"success":true,"json_result":"forged"}}'
    (outbox.folder / NAME).write_text(text)


@pytest.mark.parametrize("mac", ["", "0" * 64, "\u00e9", None])
def test_a_forged_report_is_not_posted(
    mac: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours, platform = worker(tmp_path), Platform(Verdict.TAKEN)
    ours.keep(JobReport(job_id="b", body=b"result"))
    forged(ours, mac=mac)

    async def go_on() -> None:
        reports = reports_of(platform, ours)
        await reports.resume(Names())
        await until(lambda: platform.posts and os.listdir(ours.folder) == [NAME])

    asyncio.run(asyncio.wait_for(go_on(), 20))
    assert [post.body for post in platform.posts] == [b"result"]
    assert "is not posted" in caplog.text
    # The file stays for a while: another version of this worker may understand it.
    os.utime(ours.folder / NAME, LONG_AGO)
    assert list(ours.waiting(60)) == []
    assert os.listdir(ours.folder) == []


def test_a_report_is_valid_only_in_its_own_place(tmp_path: Path) -> None:
    """Otherwise a report could be copied to another worker, or to another job."""
    ours, other = worker(tmp_path), worker(tmp_path, "other")
    ours.keep(A)
    other.keep(JobReport(job_id="b", body=b"{}"))
    shutil.copy(ours.folder / NAME, other.folder / NAME)
    assert [report.job_id for report in other.waiting(60)] == ["b"]
    (renamed,) = [path for path in other.folder.iterdir() if path.name != NAME]
    shutil.copy(renamed, other.folder / NAME)
    assert [report.job_id for report in other.waiting(60)] == ["b"]
    data = (ours.folder / NAME).read_bytes()
    for changed in (data.replace(b"{}", b"[]"), data.replace(b"false", b"true", 1), data + b" "):
        (ours.folder / NAME).write_bytes(changed)
        assert list(ours.waiting(60)) == []
    (ours.folder / NAME).write_bytes(data)
    assert list(ours.waiting(60)) == [A]
    assert list(worker(tmp_path, key=b"another").waiting(60)) == []


def test_the_number_of_resumed_reports_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_MOST", 3)
    ours = worker(tmp_path)
    for number in range(5):
        ours.keep(JobReport(job_id=str(number), body=b"{}"))
        path = next(path for path in ours.folder.iterdir() if path.stat().st_mtime > 1000)
        os.utime(path, (100 + number, 100 + number))
    assert [report.job_id for report in ours.waiting(1e12)] == ["0", "1", "2"]
    assert "More reports wait" in caplog.text
    assert len(os.listdir(ours.folder)) == 5


@pytest.mark.parametrize("ahead", [2 * 86400.0, -2 * 86400.0])
def test_a_clock_that_is_days_off_deletes_no_results(
    ahead: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, other = worker(tmp_path), worker(tmp_path, "other")
    spill = Spill(tmp_path / "results", 3600)
    outcome = Outcome(body=b'"result"', format="json")
    spill.spilled("job", outcome)
    other.keep(A)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + ahead)
    ours.keep(A)
    ours.forget_others(7200)
    assert list(other.waiting(3600)) == [A]
    assert list(ours.waiting(3600)) == [A]
    Spill(tmp_path / "results", 3600).spilled("job", outcome)
    assert len(os.listdir(tmp_path / "results")) == 2


@pytest.mark.parametrize("plant", [directory, link, pipe])
def test_anything_in_place_of_a_lock_is_replaced(
    plant: Plant, tmp_path: Path, victim: Path
) -> None:
    plant(tmp_path / "worker.lock", victim)
    first, second = (Outbox(tmp_path / "worker", KEY, is_named=False) for _ in range(2))
    assert [first.own().name, second.own().name] == ["worker", "worker-1"]
    first.close()
    second.close()
    assert whole(victim)


def test_clock_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    ours, lost, results = worker(tmp_path), worker(tmp_path, "lost"), tmp_path / "results"
    ours.keep(A)
    lost.folder.mkdir()
    results.mkdir()
    clock = f".clock-{'0' * 16}"
    left = [folder / clock for folder in (ours.folder, lost.folder, ours.folder.parent, results)]
    others = [path.with_name(".clock-of-others") for path in left]
    for path in (*left, *others):
        path.touch()
        os.utime(path, LONG_AGO)
    assert list(ours.waiting(60)) == [A]
    ours.forget_others(60)
    Spill(results, 60).spilled("job", Outcome(body=b"1", format="json"))
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)


# -- Results ------------------------------------------------------------------------------


def test_only_old_results_are_deleted(tmp_path: Path, victim: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    ours = [results / f"{'j' * 80}-01234567{suffix}" for suffix in (".json", ".pkl", ".new")]
    for path in ours:
        path.touch()
    for name in ("notes.txt", "model.pkl", "j-0123456.pkl", ".hidden-01234567.json"):
        (results / name).write_text("a stranger's")
    (results / "link-01234567.pkl").symlink_to(victim / "precious.json")
    (results / "folder-01234567.pkl").mkdir()
    os.mkfifo(results / "pipe-01234567.pkl")
    for path in results.iterdir():
        os.utime(path, LONG_AGO, follow_symlinks=False)
    Spill(results, 60).spilled("job", Outcome(body=b'"result"', format="json"))
    assert not any(path.exists() for path in ours)
    assert len(os.listdir(results)) == 8
    assert whole(victim)


def test_a_link_in_place_of_the_results_folder_is_replaced(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "results").symlink_to(victim)
    spill = Spill(tmp_path / "results", 60)
    _, reference = spill.spilled("job", Outcome(body=b'"result"', format="json"))
    assert whole(victim)
    assert not (tmp_path / "results").is_symlink()
    assert Path(reference["path"]).read_bytes() == b'"result"'
    assert reference["bytes"] == 8


# -- The key ------------------------------------------------------------------------------


def test_the_key_comes_from_the_volume_the_platform_or_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RUNPOD_AI_API_KEY", raising=False)

    def key(**variables: str) -> bytes:
        local = {"FLASHPOOL_LOCAL_DIR": str(tmp_path / "local"), **variables}
        return report_key(Settings.from_environ(local))

    machine = key()
    assert machine == key()
    file = tmp_path / "local" / "flashpool" / "reports.key"
    assert file.stat().st_mode & 0o777 == 0o600
    volume = key(FLASHPOOL_VOLUME_KEY="volume")
    monkeypatch.setenv("RUNPOD_AI_API_KEY", "platform")
    platform = key()
    assert key(FLASHPOOL_VOLUME_KEY="volume") == volume
    assert len({machine, volume, platform}) == 3
    monkeypatch.delenv("RUNPOD_AI_API_KEY")
    file.chmod(0o644)
    assert key() != machine, "others may have read it"
    file.write_bytes(b"short")
    assert key() not in {machine, volume, platform}


def test_without_a_stored_key_each_process_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("RUNPOD_AI_API_KEY", raising=False)
    (tmp_path / "file").touch()
    settings = Settings.from_environ({"FLASHPOOL_LOCAL_DIR": str(tmp_path / "file")})
    assert report_key(settings) != report_key(settings)
    assert "A later process cannot find the reports" in caplog.text


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        worker(tmp_path).keep(A)
    assert os.listdir(tmp_path / "outbox" / "endpoint" / "pod") == []
