"""Reports that a stopped worker leaves are resumed by the next worker, and by no other."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.queue_jobs import HANDLER, NOTHING, failure, started_as, value
from e2e.server import request, until

from support.cloud import Fault, Platform, Status

pytestmark = pytest.mark.slow

#: Does not return the first time, and returns at once when it runs again.
TWICE = """def f(path):
    import os, time
    if os.path.exists(path):
        return "again"
    open(path, "w").close()
    time.sleep(60)"""
WAITS = """def f(path, n):
    import os, time
    open(f"{path}{n}", "w").close()
    while not os.path.exists(path):
        time.sleep(0.01)
    return n"""


@pytest.fixture
def platform() -> Iterator[Platform]:
    with Platform() as platform:
        yield platform


def kept(folder: Path) -> dict[str, list[Path]]:
    """Reports on disk, by the folder that they are in."""
    found: dict[str, list[Path]] = {}
    for path in (folder / "state").rglob("*.json"):
        found.setdefault(path.parent.name, []).append(path)
    return found


def test_a_cut_off_job_runs_again_when_it_is_handed_out_again(tmp_path: Path) -> None:
    """Its report waits there, and says only that the worker had to leave."""
    with Platform(lost_after_s=1.5, redeliveries=1) as platform:
        platform.script(Fault.answers("job-done", 500, times=None))
        same = {"RUNPOD_POD_ID": "the-pod", "FLASHPOOL_DRAIN_S": "2"}
        worker = started_as(platform, tmp_path, same)
        job = platform.submit(request(TWICE, str(tmp_path / "begun")))
        until((tmp_path / "begun").exists)
        assert worker.stop() == 0
        assert len(kept(tmp_path)["the-pod"]) == 1
        platform.until(lambda: platform.job(job).status is Status.IN_QUEUE)
        second = started_as(platform, tmp_path, same)
        platform.until(lambda: len(platform.job(job).deliveries) == 2)
        until(lambda: any(b"again" in path.read_bytes() for path in kept(tmp_path)["the-pod"]))
        platform.clear_faults()
        assert value(platform.wait(job)) == "again"
        until(lambda: not kept(tmp_path))
        assert second.stop() == 0


def test_unnamed_workers_do_not_touch_each_others_reports(
    platform: Platform, tmp_path: Path
) -> None:
    """Two on one machine, with the same places."""
    without_name = ["env", "-u", "RUNPOD_POD_ID", *HANDLER]
    one_slot = {"FLASHPOOL_SLOTS": "1"}
    platform.script(Fault.answers("job-done", 500, times=None))
    workers = [started_as(platform, tmp_path, one_slot, without_name) for _ in range(2)]
    go = tmp_path / "go"
    jobs = [platform.submit(request(WAITS, str(go), n)) for n in range(2)]
    until(lambda: all(Path(f"{go}{n}").exists() for n in range(2)))
    go.touch()
    until(lambda: set(kept(tmp_path)) == {"worker", "worker-1"})
    # A third worker starts and leaves their reports alone.
    third = started_as(platform, tmp_path, one_slot, without_name)
    workers[0].process.send_signal(signal.SIGKILL)
    workers[0].wait()
    assert set(kept(tmp_path)) == {"worker", "worker-1"}
    assert "of an earlier process" not in third.output()
    assert third.stop() == 0
    # A fourth worker takes over the folder of the killed one.
    fourth = started_as(platform, tmp_path, one_slot, without_name)
    until(lambda: "1 results of an earlier process" in fourth.output())
    platform.clear_faults()
    assert [value(record) for record in platform.wait_all(jobs)] == [0, 1]
    until(lambda: not kept(tmp_path))
    posts = {job: {one.worker for one in platform.exchanges("job-done", job=job)} for job in jobs}
    assert sorted(map(len, posts.values())) == [1, 2]
    assert [one.stop() for one in (workers[1], fourth)] == [0, 0]


def test_hanging_disks_delay_nothing(platform: Platform, tmp_path: Path) -> None:
    """Neither the start, nor a large result, nor the end."""
    hanging = [sys.executable, str(Path(__file__).parent / "cloud" / "hanging_disk.py")]
    volume = tmp_path / "volume"
    volume.mkdir()
    variables = {
        "FLASHPOOL_DRAIN_S": "2",
        "FLASHPOOL_RESULT_SPILL": "yes",
        "FLASHPOOL_VOLUME": str(volume),
    }
    worker = started_as(platform, tmp_path, variables, hanging)
    large = request("def f(): return 'x' * 11_000_000")
    record = platform.wait(platform.submit(large, policy={"executionTimeout": 4000}))
    assert failure(record) == "ResultTooLarge"
    assert "the disk has not answered within" in (record.error or "")
    assert "Cannot look for results" in worker.output()
    platform.script(Fault.answers("job-done", 500, times=None))
    platform.submit(request(NOTHING, 1))
    until(lambda: "cannot be saved in" in worker.output())
    assert worker.stop() == 0
    assert "Results that the platform did not accept: 1, of which on disk: 0" in worker.output()
