"""The stand-in for the cloud, tried with the real SDK as its worker and the real client."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from e2e.queue_client import local_api, run_client

from support.cloud import Fault, Platform, Status, Worker

pytestmark = [pytest.mark.shared_pool, pytest.mark.timeout(120)]

PLAIN = [sys.executable, str(Path(__file__).parent / "cloud" / "plain_worker.py")]


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with Platform(poll_s=0.3) as platform:
        yield platform


@pytest.fixture(scope="module")
def worker(platform: Platform) -> Worker:
    """One worker for the tests that leave it unchanged."""
    return started(platform)


def started(platform: Platform, **variables: str) -> Worker:
    """Start a worker and wait for its first poll."""
    worker = platform.start_worker(PLAIN, variables=variables)
    platform.until(lambda: platform.exchanges("job-stop", worker=worker.id))
    return worker


def begun(platform: Platform, worker: Worker, job: str) -> None:
    """Wait until the job runs: the SDK loses the stop of a job it has taken but not begun."""
    platform.until(lambda: _said(worker, job, "Started."))


def _said(worker: Worker, job: str, message: str) -> bool:
    return any(job in line and message in line for line in worker.output().splitlines())


def test_a_job_runs_once_and_everything_about_it_is_known(
    platform: Platform, worker: Worker
) -> None:
    job = platform.submit({"echo": [1, None, "ä"]})
    record = platform.wait(job)
    assert record.status is Status.COMPLETED
    assert record.output == {"echo": [1, None, "ä"]}
    assert (record.done_count, len(record.deliveries)) == (1, 1)
    assert record.worker == worker.id
    (done,) = platform.exchanges("job-done", job=job)
    assert done.query["isStream"] == "false"
    assert done.headers["Content-Type"] == "application/x-www-form-urlencoded"
    (ping,) = platform.until(lambda: platform.pings(worker.id)[:1])
    assert ping.query["runpod_version"]


@pytest.mark.slow
def test_an_error_is_reported_and_the_worker_continues(platform: Platform, worker: Worker) -> None:
    failed, fine = platform.submit({"fail": "no luck"}), platform.submit({"echo": 1})
    platform.wait_all([failed, fine])
    assert platform.job(failed).status is Status.FAILED
    assert "no luck" in (platform.job(failed).error or "")
    assert platform.job(fine).output == {"echo": 1}


@pytest.mark.slow
def test_items_arrive_in_order() -> None:
    with Platform(poll_s=0.3) as platform:
        started(platform, PLAIN_STREAM="1")
        record = platform.wait(platform.submit({"stream": 5}))
    assert record.items == [{"item": n} for n in range(5)]
    assert record.output == record.items
    assert record.dones[0].is_stream


@pytest.mark.slow
def test_progress_is_distinguished_from_the_result(platform: Platform, worker: Worker) -> None:
    record = platform.wait(platform.submit({"progress": 3, "sleep": 0.5, "echo": 1}))
    platform.until(lambda: len(platform.job(record.id).progress) == 3)
    assert record.done_count == 1
    assert record.output == {"echo": 1}


@pytest.mark.slow
def test_many_jobs_at_once_are_taken_in_batches() -> None:
    with Platform(poll_s=0.3) as platform:
        jobs = [platform.submit({"sleep": 0.2, "echo": n}) for n in range(12)]
        started(platform, PLAIN_CONCURRENCY="4")
        records = platform.wait_all(jobs)
        assert platform.exchanges("job-take-batch")
    assert [record.output["echo"] for record in records] == list(range(12))
    assert {record.done_count for record in records} == {1}


@pytest.mark.parametrize(
    "fault",
    [
        Fault.answers("job-take", 500, times=3),
        Fault.bad_json("job-take", times=3),
        Fault.cuts("job-take", times=3),
    ],
    ids=["500", "bad_json", "cut"],
)
@pytest.mark.slow
def test_the_sdk_asks_again_after_a_fault(platform: Platform, worker: Worker, fault: Fault) -> None:
    since = time.monotonic()
    platform.script(fault)

    def met() -> int:
        takes = platform.exchanges("job-take")
        return sum(one.at > since and one.status == fault.status for one in takes)

    platform.until(lambda: met() >= 3)
    assert platform.wait(platform.submit({"echo": 1})).output == {"echo": 1}


@pytest.mark.slow
def test_a_refused_result_is_posted_again(platform: Platform, worker: Worker) -> None:
    platform.script(Fault.answers("job-done", 500, times=1))
    record = platform.wait(platform.submit({"echo": 1}))
    statuses = [one.status for one in platform.exchanges("job-done", job=record.id)]
    assert statuses == [500, 200]


@pytest.mark.slow
def test_an_answer_that_is_lost_makes_a_second_post(platform: Platform, worker: Worker) -> None:
    platform.script(Fault.answers("job-done", 502, carried_out=True))
    job = platform.submit({"echo": 1})
    platform.until(lambda: platform.job(job).done_count == 2)
    assert [done.counted for done in platform.job(job).dones] == [True, False]


@pytest.mark.slow
def test_a_job_can_be_handed_out_twice(platform: Platform, worker: Worker) -> None:
    platform.script(Fault.duplicates())
    job = platform.submit({"echo": 1})
    platform.until(lambda: platform.job(job).done_count == 2)
    assert len(platform.job(job).deliveries) == 2
    assert platform.job(job).status is Status.COMPLETED


@pytest.mark.slow
def test_hanging_requests_continue_when_the_fault_is_cleared(
    platform: Platform, worker: Worker
) -> None:
    platform.script(Fault.hangs("job-done"))
    job = platform.submit({"echo": 1})
    platform.until(lambda: platform.exchanges("job-done", job=job))
    assert not platform.job(job).final
    platform.clear_faults()
    assert platform.wait(job).done_count == 1


@pytest.mark.slow
def test_cancelling_stops_it_and_nothing_is_posted(platform: Platform, worker: Worker) -> None:
    job = platform.submit({"sleep": 600})
    begun(platform, worker, job)
    platform.cancel(job)
    assert platform.job(job).status is Status.CANCELLED
    platform.until(lambda: _said(worker, job, "Job stopped."))
    assert platform.wait(platform.submit({"echo": 1})).output == {"echo": 1}
    assert platform.job(job).done_count == 0


@pytest.mark.slow
def test_the_time_limit_of_a_job_ends_it(platform: Platform, worker: Worker) -> None:
    job = platform.submit({"sleep": 600}, policy={"executionTimeout": 1000})
    record = platform.wait(job)
    assert record.status is Status.TIMED_OUT
    platform.until(lambda: _said(worker, job, "Job stopped."))


@pytest.mark.slow
def test_sigterm_lets_it_finish() -> None:
    with Platform(poll_s=0.3) as platform:
        worker = started(platform)
        job = platform.submit({"sleep": 1, "echo": 1})
        platform.until(lambda: platform.job(job).deliveries)
        assert worker.stop() == 0
        assert platform.job(job).output == {"echo": 1}


@pytest.mark.slow
def test_a_worker_that_asks_for_it_is_stopped() -> None:
    with Platform(poll_s=0.3) as platform:
        worker = started(platform)
        record = platform.wait(platform.submit({"echo": 1, "refresh": True}))
        assert record.output == {"echo": 1}
        assert worker.wait() == 0


@pytest.mark.slow
def test_a_lost_worker_s_job_is_given_to_another() -> None:
    with Platform(poll_s=0.3, lost_after_s=5, redeliveries=1) as platform:
        lost = started(platform)
        job = platform.submit({"sleep": 1})
        platform.until(lambda: platform.job(job).deliveries)
        # Otherwise its heartbeat would continue.
        os.killpg(lost.process.pid, signal.SIGKILL)
        started(platform)
        record = platform.wait(job)
    assert [one.worker for one in record.deliveries] == ["pod1", "pod2"]
    assert record.status is Status.COMPLETED


@pytest.mark.slow  # test_queue_client has it provision our worker, through the same stand-in
def test_the_real_client_provisions_and_calls(client_python: Path, tmp_path: Path) -> None:
    with Platform(worker=PLAIN, worker_variables={"PLAIN_CONCURRENCY": "4"}) as platform:
        told = run_client(
            client_python,
            tmp_path / "home",
            "F",
            platform,
            only=["add", "together", "fails", "stacked", "class_state"],
        )
        names = [saved["name"] for saved in platform.endpoints().values()]
    assert told.value("add") == 42
    assert told.value("together") == [1, 2, 3, 4, 5, 6, 7, 8]
    assert "ValueError: no such luck" in told.text("fails")
    assert told.value("stacked") == 41
    assert told.value("class_state") == [11, 12, 101, 13]
    assert names == ["live-calls", "live-inner"]


@pytest.mark.slow
def test_the_real_client_s_jobs(
    platform: Platform, worker: Worker, client_python: Path, tmp_path: Path
) -> None:
    told = run_client(
        client_python,
        tmp_path / "home",
        "J",
        platform,
        only=["run", "runsync", "fails", "cancel_asleep"],
    )
    assert told.value("run") == [True, 42, "adding\n"]
    assert told.value("runsync") == 42
    assert told.value("fails")[0] == "FAILED"
    job, status, done = told.value("cancel_asleep")
    assert (status, done) == ("CANCELLED", True)
    # Before SIGTERM: the SDK asks for no stops after it.
    platform.until(lambda: _said(worker, job, "Job stopped."))
    assert platform.job(job).done_count == 0


@pytest.mark.slow
def test_it_runs_as_a_process_too() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "support.cloud"],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout
        lines = list(iter(process.stdout.readline, "# ready\n"))
        exports = dict(line[7:].strip().split("=", 1) for line in lines if line[0] != "#")
        health = httpx.get(
            f"{exports['RUNPOD_ENDPOINT_BASE_URL']}/ep-local/health",
            headers={"Authorization": f"Bearer {exports['RUNPOD_API_KEY']}"},
            trust_env=False,
            timeout=30,
        )
        process.terminate()
        assert (health.status_code, process.wait(30)) == (200, 0)
    assert "RUNPOD_WEBHOOK_GET_JOB" in exports


@pytest.mark.slow
def test_the_sdk_s_local_api(platform: Platform, client_python: Path, tmp_path: Path) -> None:
    with local_api(PLAIN, tmp_path, {}) as url:
        stub = run_client(client_python, tmp_path / "home", "D", platform, url=url)
        endpoint = run_client(client_python, tmp_path / "home", "E", platform, url=url)
    assert stub.value("add") == 42
    assert "ValueError: no such luck" in stub.text("fails")
    assert endpoint.value("run_sync") == 42
