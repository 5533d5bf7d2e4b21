"""Every job that was taken is reported once: with a platform that refuses, and by a worker that
is told to leave, or killed.
"""

import base64
import json
import pickle
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from e2e.queue_jobs import (
    NOTHING,
    STAYS,
    failure,
    run,
    started,
    started_as,
    value,
    working,
)
from e2e.server import alive, request, until

from support.cloud import Fault, Platform, Status, Worker

ENDS = """def f(n):
    import os, signal, time
    if n % 10:
        time.sleep(0.01)
        return n
    way = n // 10 % 4
    if way == 0:
        os._exit(7)
    if way == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    if way == 2:
        kept = []
        while True:
            kept.append(b'x' * (8 << 20))
            time.sleep(0.005)
    while True:
        pass"""
CAUSES = {
    0: ("WorkerCrashed", "exit code 7"),
    1: ("WorkerCrashed", "SIGSEGV"),
    2: ("OutOfMemory", "256"),
    3: ("Timeout", "1"),
}


@pytest.fixture
def platform() -> Iterator[Platform]:
    with Platform() as platform:
        yield platform


def kept(folder: Path) -> list[Path]:
    """Return the results that wait on disk."""
    return [path for path in (folder / "state").rglob("*.json") if path.is_file()]


def pids(worker: Worker) -> list[psutil.Process]:
    return psutil.Process(worker.process.pid).children(recursive=True)


def staying(platform: Platform, mark: Path, seconds: float) -> str:
    job = platform.submit(request(STAYS, str(mark), seconds))
    until(mark.exists)
    return job


@pytest.mark.timeout(180)
def test_two_hundred_jobs_of_which_every_tenth_kills_itself(
    platform: Platform, tmp_path: Path
) -> None:
    def limits(n: int) -> dict[str, Any]:
        # A busy machine needs time to fill 256 MiB, and for all the other jobs.
        return {"timeout_s": 1 if n % 40 == 30 else 30, "memory_mb": 256}

    jobs = [platform.submit(request(ENDS, n, **limits(n))) for n in range(200)]
    with working(tmp_path, platform, FLASHPOOL_SLOTS="4") as worker:
        records = platform.wait_all(jobs, 150)
        assert worker.output().count("Starting Serverless Worker") == 1
    assert Counter(record.done_count for record in records) == {1: 200}
    assert Counter(len(record.deliveries) for record in records) == {1: 200}
    for n, record in enumerate(records):
        if n % 10:
            assert value(record) == n
        else:
            error_type, text = CAUSES[n // 10 % 4]
            assert (n, failure(record)) == (n, error_type)
            assert text in (record.error or "")


def refused_for(platform: Platform, tmp_path: Path, seconds: float) -> None:
    platform.script(Fault.answers("job-done", 500, times=None))
    with working(tmp_path, platform) as worker:
        began = time.monotonic()
        jobs = [platform.submit(request(NOTHING, n)) for n in range(20)]
        until(lambda: len(kept(tmp_path)) == 20)
        # The heartbeat still names the jobs, so they are not lost.
        platform.until(lambda: set(jobs) <= set(platform.pings(worker.id)[-1].jobs))
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        assert not any(platform.job(job).final for job in jobs)
        platform.clear_faults()
        records = platform.wait_all(jobs)
        assert [value(record) for record in records] == list(range(20))
        until(lambda: not kept(tmp_path))
        assert worker.running


@pytest.mark.slow
def test_results_that_are_refused_arrive_later_and_once(platform: Platform, tmp_path: Path) -> None:
    refused_for(platform, tmp_path, 3)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_results_refused_for_a_minute_arrive_and_once(platform: Platform, tmp_path: Path) -> None:
    refused_for(platform, tmp_path, 60)


@pytest.mark.parametrize("status", [401, 404, 429, 503])
@pytest.mark.slow
def test_reports_are_retried_after_any_refusal(
    platform: Platform, tmp_path: Path, status: int
) -> None:
    with working(tmp_path, platform):
        platform.script(Fault.answers("job-done", status, times=2))
        assert value(run(platform, NOTHING, 5)) == 5


@pytest.mark.slow
def test_reports_are_retried_when_the_platform_does_not_answer(
    platform: Platform, tmp_path: Path
) -> None:
    worker = started(tmp_path, platform, FLASHPOOL_DRAIN_S="3")
    platform.script(Fault.hangs("job-done", times=None), Fault.hangs("job-take", times=None))
    job = platform.submit(request(NOTHING, 5))
    # The open poll is answered.
    until(lambda: kept(tmp_path), 20)
    assert worker.stop() == 0
    assert not platform.job(job).final
    assert len(kept(tmp_path)) == 1


@pytest.mark.slow
def test_broken_connections_and_oversized_answers_are_survived(
    platform: Platform, tmp_path: Path
) -> None:
    with working(tmp_path, platform):
        platform.script(Fault.cuts("job-done", times=5))
        assert value(run(platform, NOTHING, 5)) == 5
        platform.script(Fault.answers("job-done", 413))
        assert failure(run(platform, NOTHING, 5)) == "ResultTooLarge"
        # A report of a job that the platform no longer knows is dropped.
        platform.script(Fault.answers("job-done", 410, times=None))
        job = platform.submit(request(NOTHING, 6))
        platform.until(lambda: platform.exchanges("job-done", job=job))
        platform.clear_faults()
        assert value(run(platform, NOTHING, 7)) == 7
        assert not kept(tmp_path)
        assert len(platform.exchanges("job-done", job=job)) == 1


@pytest.mark.slow
def test_what_is_cancelled_is_kept_by_one_that_waits_for_its_progress(
    platform: Platform, tmp_path: Path
) -> None:
    """The platform says nothing, neither to its progress nor to its report."""
    worker = started(tmp_path, platform, FLASHPOOL_DRAIN_S="3", FLASHPOOL_QB_PROGRESS="yes")
    platform.script(Fault.hangs("job-done", times=None))
    staying(platform, tmp_path / "begun", 60)
    assert worker.stop() == 0
    (report,) = kept(tmp_path)
    assert b"FLASHPOOL_DRAIN_S" in report.read_bytes()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.slow
def test_a_restarted_worker_resumes_its_reports(
    platform: Platform, tmp_path: Path, how: signal.Signals
) -> None:
    platform.script(Fault.answers("job-done", 500, times=None))
    same = {"RUNPOD_POD_ID": "the-pod", "FLASHPOOL_DRAIN_S": "3"}
    worker = started_as(platform, tmp_path, same)
    job = platform.submit(request(NOTHING, 9))
    until(lambda: kept(tmp_path), 20)
    worker.process.send_signal(how)
    assert worker.wait() == (0 if how is signal.SIGTERM else -signal.SIGKILL)
    assert platform.job(job).status is Status.IN_PROGRESS
    assert len(kept(tmp_path)) == 1
    before = len(platform.pings("the-pod"))
    second = started_as(platform, tmp_path, same)
    # The job is not lost: the new worker's heartbeat names it.
    platform.until(lambda: any(job in one.jobs for one in platform.pings("the-pod")[before:]))
    platform.clear_faults()
    assert value(platform.wait(job)) == 9
    until(lambda: not kept(tmp_path))
    assert second.stop() == 0


def test_sigterm_under_load_reports_every_job(platform: Platform, tmp_path: Path) -> None:
    worker = started(tmp_path, platform, FLASHPOOL_SLOTS="4", FLASHPOOL_DRAIN_S="6")
    code = "def f(n):\n    import time\n    time.sleep(0.05)\n    return n"
    jobs = [platform.submit(request(code, n)) for n in range(300)]
    long = [platform.submit(request("def f():\n    import time\n    time.sleep(60)"))]
    platform.until(lambda: sum(one.final for one in platform.jobs()) > 20)
    assert worker.stop() == 0, "and does not wait for the one that sleeps"
    taken = [one for one in map(platform.job, jobs + long) if one.deliveries]
    assert len(taken) > 20
    assert {one.done_count for one in taken} == {1}
    assert {one.status for one in taken} <= {Status.COMPLETED, Status.FAILED}
    rest = [one for one in map(platform.job, jobs + long) if not one.deliveries]
    assert {one.status for one in rest} <= {Status.IN_QUEUE}


@pytest.mark.slow
def test_jobs_that_outlast_the_drain_are_reported_as_cancelled(
    platform: Platform, tmp_path: Path
) -> None:
    worker = started(tmp_path, platform, FLASHPOOL_DRAIN_S="6")
    tree = pids(worker)
    long = staying(platform, tmp_path / "long", 60)
    short = staying(platform, tmp_path / "short", 1)
    assert worker.stop() == 0
    assert value(platform.job(short)) == "done"
    assert failure(platform.job(long)) == "Cancelled"
    assert "FLASHPOOL_DRAIN_S" in (platform.job(long).error or "")
    until(lambda: not alive(tree))


@pytest.mark.slow
def test_without_a_drain_all_jobs_are_still_reported(platform: Platform, tmp_path: Path) -> None:
    worker = started(tmp_path, platform, FLASHPOOL_DRAIN_S="0")
    jobs = [staying(platform, tmp_path / name, 60) for name in ("one", "two")]
    assert worker.stop() == 0
    assert [failure(platform.job(job)) for job in jobs] == ["Cancelled", "Cancelled"]


def test_a_second_signal_ends_the_drain(platform: Platform, tmp_path: Path) -> None:
    worker = started(tmp_path, platform, FLASHPOOL_DRAIN_S="60")
    job = staying(platform, tmp_path / "begun", 60)
    worker.process.send_signal(signal.SIGINT)
    until(lambda: "draining for at most" in worker.output())
    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert failure(platform.job(job)) == "Cancelled"


@pytest.mark.slow
def test_a_job_taken_during_the_signal_is_run(tmp_path: Path) -> None:
    """The SDK's own loop takes it from the poll that is still open, and drops it."""
    with Platform(poll_s=3) as platform:
        worker = started(tmp_path, platform)
        worker.terminate()
        until(lambda: "draining for at most" in worker.output())
        job = platform.submit(request(NOTHING, 4))
        assert worker.wait() == 0
        assert value(platform.job(job)) == 4


@pytest.mark.slow
def test_an_open_poll_does_not_extend_the_drain(tmp_path: Path) -> None:
    with Platform(poll_s=60) as platform:
        with working(tmp_path, platform, FLASHPOOL_DRAIN_S="1") as worker:
            assert worker.stop() == 0, "long before the poll is answered"
        job = platform.submit(request(NOTHING))
        assert not platform.job(job).deliveries


@pytest.mark.slow
def test_cancelling_works_during_the_drain(platform: Platform, tmp_path: Path) -> None:
    worker = started(tmp_path, platform, FLASHPOOL_DRAIN_S="30")
    job = staying(platform, tmp_path / "begun", 60)
    worker.terminate()
    until(lambda: "draining for at most" in worker.output())
    platform.cancel(job)
    assert worker.wait() == 0


def test_a_killed_worker_leaves_nothing_and_no_heartbeat(
    platform: Platform, tmp_path: Path
) -> None:
    worker = started(tmp_path, platform)
    staying(platform, tmp_path / "begun", 60)
    platform.until(lambda: platform.pings(worker.id))
    tree = pids(worker)
    assert len(tree) >= 3
    worker.process.kill()
    worker.process.wait()
    until(lambda: not alive(tree))


@pytest.mark.slow
def test_the_heartbeat_continues_when_its_process_is_killed(
    platform: Platform, tmp_path: Path
) -> None:
    with working(tmp_path, platform) as worker:
        platform.until(lambda: platform.pings(worker.id))
        process = psutil.Process(worker.process.pid)
        (child,) = (one for one in process.children() if one.cmdline() == process.cmdline())
        child.kill()
        until(lambda: "heartbeat process exited" in worker.output())
        job = staying(platform, tmp_path / "begun", 60)
        platform.until(lambda: job in platform.pings(worker.id)[-1].jobs)
        platform.cancel(job)
        platform.until(lambda: not platform.pings(worker.id)[-1].jobs)


@pytest.mark.slow
def test_a_heartbeat_process_that_dies_at_the_start_is_noticed(
    platform: Platform, tmp_path: Path
) -> None:
    dying = [sys.executable, str(Path(__file__).parent / "cloud" / "dead_heartbeat.py")]
    worker = started_as(platform, tmp_path, {}, dying)
    job = staying(platform, tmp_path / "begun", 60)
    platform.until(lambda: any(job in one.jobs for one in platform.pings(worker.id)))
    assert "heartbeat process exited (before the worker began)" in worker.output()
    platform.cancel(job)
    assert worker.stop() == 0


@pytest.mark.slow
def test_late_signals_do_not_change_the_exit_status(platform: Platform, tmp_path: Path) -> None:
    worker = started(tmp_path, platform)
    worker.terminate()
    while worker.running:
        worker.process.send_signal(signal.SIGTERM)
        time.sleep(0.002)
    assert worker.wait() == 0
    assert "Traceback" not in worker.output()


def test_a_stop_that_arrives_before_its_job_is_honoured(platform: Platform, tmp_path: Path) -> None:
    with working(tmp_path, platform) as worker:
        before = platform.submit(request(NOTHING, 1))
        assert value(platform.wait(before)) == 1
        following = f"{before.removesuffix('1')}2"
        platform.send_stop(following, worker=worker.id)
        # The stop is answered while the job is still in transit.
        stops = lambda: platform.exchanges("job-stop", worker=worker.id)  # noqa: E731
        platform.until(lambda: any(one.status == 200 for one in stops()))
        assert platform.submit(request(NOTHING, 1)) == following
        assert failure(platform.wait(following)) == "Cancelled"
        assert value(run(platform, NOTHING, 1)) == 1


@pytest.mark.slow
def test_a_stream_that_lost_items_for_good_is_reported_as_failed(
    platform: Platform, tmp_path: Path
) -> None:
    with working(tmp_path, platform):
        platform.script(Fault.answers("job-stream", 500, times=None))
        code = "def f():\n    yield 1\n    yield 2"
        policy = {"executionTimeout": 8000}
        held = platform.submit(request(code), policy=policy)
        lost = platform.submit(request(code, return_aggregate_stream=False), policy=policy)
        assert value(platform.wait(held)) == [1, 2]
        record = platform.wait(lost)
        assert failure(record) == "Timeout"
        assert "job-stream" in (record.error or "")


def test_large_results_are_written_to_the_volume(platform: Platform, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    variables = {"FLASHPOOL_RESULT_SPILL": "yes", "FLASHPOOL_VOLUME": str(volume)}
    with working(tmp_path, platform, **variables):
        record = run(platform, "def f(): return ['x' * 11_000_000, 5]")
        reference = value(record)["flashpool_result"]
        assert record.output["spilled"] == reference
        assert Path(reference["path"]).is_relative_to(volume)
        assert json.loads(Path(reference["path"]).read_bytes())[1] == 5
        fields = {"function_name": "f", "function_code": "def f(): return b'x' * 9_000_000"}
        record = platform.wait(platform.submit(fields))
        reference = pickle.loads(base64.b64decode(record.output["result"]))["flashpool_result"]
        assert len(pickle.loads(Path(reference["path"]).read_bytes())) == 9_000_000


@pytest.mark.slow
def test_the_sdks_debugger_adds_its_output(platform: Platform, tmp_path: Path) -> None:
    with working(tmp_path, platform, flags=["--rp_debugger", "--rp_log_level=DEBUG"]) as worker:
        record = run(platform, NOTHING, 5)
        assert value(record) == 5
        assert record.output["rp_debugger"]["ready_delay_ms"] >= 0
        assert "DEBUG" in worker.output()
