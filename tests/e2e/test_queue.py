"""Jobs of the queue, run by the image's entry point under the real SDK's loop."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import httpx
import psutil
import pytest
from e2e.queue_jobs import NOTHING, STAYS, failure, run, value, working
from e2e.server import alive, request, until

from support.cloud import Fault, Platform, Status, Worker

pytestmark = pytest.mark.shared_pool


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with Platform() as platform:
        yield platform


@pytest.fixture(scope="module")
def worker(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    folder = tmp_path_factory.mktemp("worker")
    with working(folder, platform, FLASHPOOL_QB_PROGRESS="yes") as worker:
        yield worker


@pytest.fixture(autouse=True)
def _same_worker(platform: Platform, worker: Worker) -> Iterator[None]:
    platform.clear_faults()
    yield
    assert worker.running, worker.last_words()
    assert platform.workers() == [worker]


def log_lines(worker: Worker, job: str) -> list[str]:
    entries = [json.loads(line) for line in worker.output().splitlines() if line[:1] == "{"]
    return [one["message"] for one in entries if one["requestId"] == job]


def test_a_result_is_reported_with_its_output(platform: Platform, worker: Worker) -> None:
    record = run(platform, "def f(a, b):\n    print('adding')\n    return a + b", 40, 2)
    assert value(record) == 42
    assert record.output["stdout"] == "adding\n"
    assert record.output["receipt"]["environment"] == "base"
    until(lambda: log_lines(worker, record.id) == ["Started.", "adding", "Finished."])


def test_pickled_arguments_of_the_client_are_accepted(platform: Platform) -> None:
    pickled = base64.b64encode(cloudpickle.dumps({1, 2})).decode()
    fields = {"function_name": "f", "function_code": "def f(x): return x | {3}", "args": [pickled]}
    record = platform.wait(platform.submit(fields))
    assert cloudpickle.loads(base64.b64decode(record.output["result"])) == {1, 2, 3}


@pytest.mark.parametrize(
    ("code", "error_type", "text"),
    [
        ("def f(): raise ValueError('no luck')", "ValueError", "in f"),
        ("def f():\n    import sys\n    sys.exit(3)", "SystemExit", "3"),
        ("def f(): raise KeyboardInterrupt", "KeyboardInterrupt", "KeyboardInterrupt"),
        ("def f():\n    import os\n    os._exit(7)", "WorkerCrashed", "exit code 7"),
        ("def f(): return {1, 2}", "ResultNotSerializable", "set"),
        ("def f(): return float('nan')", "ResultNotSerializable", "float"),
        ("def f(: pass", "SyntaxError", "invalid syntax"),
    ],
)
def test_each_failure_has_its_error_type(
    platform: Platform, code: str, error_type: str, text: str
) -> None:
    fields = {"function_name": "f", "function_code": code, "serialization_format": "json"}
    record = platform.wait(platform.submit(fields))
    assert failure(record) == error_type
    assert text in (record.error or "")
    assert record.output["receipt"]
    assert value(run(platform, NOTHING, 1)) == 1


@pytest.mark.parametrize(
    "poison",
    [None, [], "text", 5, True, {}, {"input": None}, {"function_name": 3}, float("nan"), "\ud800",
     {"function_name": "f", "function_code": NOTHING, "args": ["\udfff"]},
     {"function_name": "f", "function_code": NOTHING, "args": [float("inf")]},
     {"x": "y" * (33 * 1024 * 1024)}],
    ids=lambda poison: repr(poison)[:30],
)  # fmt: skip
def test_malformed_jobs_are_reported_and_the_loop_continues(
    platform: Platform, poison: Any
) -> None:
    record = platform.wait(platform.submit(poison))
    assert failure(record) in ("InvalidRequest", "PayloadTooLarge")
    assert value(run(platform, NOTHING, 1)) == 1


def test_a_malformed_job_of_a_batch_fails_alone(platform: Platform) -> None:
    # Both jobs are queued before the worker polls again.
    platform.script(Fault.slow("job-take", 0.5, times=2))
    run(platform, NOTHING)
    poison = [platform.submit(float("nan")), platform.submit(["\ud800"])]
    fine = platform.submit(request(NOTHING, 7))
    assert [failure(one) for one in platform.wait_all(poison)] == ["InvalidRequest"] * 2
    assert value(platform.wait(fine)) == 7


def test_jobs_run_side_by_side_and_each_starts_at_once(platform: Platform, tmp_path: Path) -> None:
    """The SDK's own loop changes its concurrency only while idle, and looks now and then."""
    first = platform.submit(request(STAYS, str(tmp_path / "1"), 60))
    until((tmp_path / "1").exists)
    second = platform.submit(request(STAYS, str(tmp_path / "2"), 0))
    assert value(platform.wait(second)) == "done"
    platform.cancel(first)


def test_cancelling_a_job_kills_its_tree(platform: Platform, tmp_path: Path) -> None:
    mark = tmp_path / "begun"
    job = platform.submit(request(STAYS, str(mark), 60))
    until(mark.exists)
    process = psutil.Process(int(mark.read_text()))
    platform.cancel(job)
    until(lambda: not alive([process]))
    record = platform.job(job)
    assert record.status is Status.CANCELLED
    # The report is for the log; the platform has already cancelled the job.
    platform.until(lambda: platform.job(job).dones)
    assert [done.counted for done in platform.job(job).dones] == [False]
    assert value(run(platform, NOTHING, 1)) == 1


def test_a_job_stopped_by_request_is_reported(platform: Platform, tmp_path: Path) -> None:
    mark = tmp_path / "begun"
    job = platform.submit(request(STAYS, str(mark), 60))
    until(mark.exists)
    platform.send_stop("nobody", worker=platform.job(job).worker)
    platform.send_stop(job)
    record = platform.wait(job)
    assert failure(record) == "Cancelled"
    assert record.output["stdout"] == "begun\n"


def test_a_job_is_reported_before_the_platforms_time_limit(platform: Platform) -> None:
    """A tenth of the limit is reserved for the report; the limit is long for slow machines."""
    loops = "def f():\n    print('looping', flush=True)\n    while True: pass"
    ignores = """def f():
    import signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True: time.sleep(1)"""
    policy = {"executionTimeout": 7000}
    looping, ignoring = [platform.submit(request(code), policy=policy) for code in (loops, ignores)]
    record = platform.wait(looping)
    assert failure(record) == "Timeout"
    assert "executionTimeout" in (record.error or "")
    assert record.output["details"]["phase"] == "run"
    assert "looping" in record.output["stdout"]
    assert failure(platform.wait(ignoring)) == "Timeout"


def test_items_are_streamed_as_they_are_produced(platform: Platform, tmp_path: Path) -> None:
    code = """def f(path):
    import os, time
    for n in range(3):
        yield {"n": n}
    while not os.path.exists(path): time.sleep(0.01)
    yield "last" """
    job = platform.submit(request(code, str(tmp_path / "go")))
    platform.until(lambda: len(platform.job(job).stream) == 3)
    assert not platform.job(job).final
    (tmp_path / "go").touch()
    record = platform.wait(job)
    assert record.items == [{"n": 0}, {"n": 1}, {"n": 2}, "last"]
    assert value(record) == record.items
    assert record.dones[0].is_stream


@pytest.mark.parametrize("how", ["def", "async def"])
def test_items_of_methods_are_streamed_too(platform: Platform, tmp_path: Path, how: str) -> None:
    code = f"""class Counter:
    def __init__(self): self.total = 0
    {how} count(self, path):
        import os, time
        self.total += 1
        yield self.total
        while not os.path.exists(path): time.sleep(0.01)
        yield "last"
"""
    fields = {"execution_type": "class", "class_name": "Counter", "class_code": code,
              "method_name": "count", "instance_id": how, "create_new_instance": False,
              "args": [str(tmp_path / "go")], "serialization_format": "json"}  # fmt: skip
    job = platform.submit(fields)
    platform.until(lambda: platform.job(job).stream)
    assert not platform.job(job).final
    (tmp_path / "go").touch()
    record = platform.wait(job)
    assert record.items == [1, "last"]
    assert value(record) == record.items
    # The instance keeps its state, and streams again.
    again = platform.wait(platform.submit({**fields, "return_aggregate_stream": False}))
    assert again.items == [2, "last"]
    assert value(again) == []


def test_a_slow_consumer_slows_the_generator(platform: Platform, tmp_path: Path) -> None:
    code = """async def f(path):
    for n in range(60):
        with open(path, "w") as file: file.write(str(n))
        yield n"""
    mark = tmp_path / "count"
    platform.script(Fault.slow("job-stream", 0.05))
    job = platform.submit(request(code, str(mark), return_aggregate_stream=False))
    platform.until(lambda: len(platform.job(job).stream) >= 5)
    ahead = int(mark.read_text() or 0) - len(platform.job(job).stream)
    assert ahead <= 20
    platform.clear_faults()
    record = platform.wait(job)
    assert record.items == list(range(60))
    assert value(record) == []


def test_refused_items_are_posted_again(platform: Platform) -> None:
    platform.script(Fault.answers("job-stream", 500, times=5, skip=1))
    record = run(platform, "def f():\n    for n in range(4): yield n")
    assert record.items == [0, 1, 2, 3]
    assert value(record) == record.items


def test_pickled_items_are_text(platform: Platform) -> None:
    fields = {"function_name": "f", "function_code": "def f():\n    yield {1}\n    yield b'x'"}
    record = platform.wait(platform.submit(fields))
    items = [cloudpickle.loads(base64.b64decode(item)) for item in record.items]
    assert items == [{1}, b"x"]
    assert cloudpickle.loads(base64.b64decode(record.output["result"])) == items


def test_progress_is_posted_before_the_result_and_never_after(platform: Platform) -> None:
    record = run(platform, "def f():\n    import time\n    time.sleep(1.2)\n    return 1")
    assert value(record) == 1
    phases = [one.output["phase"] for one in record.progress]
    assert phases[-1] == "run"
    assert all(one.at < record.dones[0].at for one in record.progress)


@pytest.mark.parametrize(
    "fault",
    [
        Fault.answers("job-take", 429),
        Fault.answers("job-take", 500, times=3),
        Fault.answers("job-take", 401),
        Fault.bad_json("job-take", times=2),
        Fault.cuts("job-take"),
        Fault.answers("job-stop", 500),
        Fault.bad_json("job-stop"),
    ],
    ids=lambda fault: f"{fault.on}-{fault.status or 'cut'}",
)
def test_the_loop_survives_errors_of_the_platform(platform: Platform, fault: Fault) -> None:
    platform.script(fault)
    assert value(run(platform, NOTHING, 1)) == 1
    assert value(run(platform, NOTHING, 2)) == 2


def test_a_job_handed_out_twice_runs_once(platform: Platform, tmp_path: Path) -> None:
    platform.script(Fault.duplicates())
    code = """def f(path):
    import time
    with open(path, "a") as file: file.write("x")
    time.sleep(2)"""
    record = run(platform, code, str(tmp_path / "runs"))
    assert len(record.deliveries) == 2
    assert value(record) is None
    assert (tmp_path / "runs").read_text() == "x"


def test_a_result_larger_than_the_platform_accepts_is_an_error(platform: Platform) -> None:
    record = run(platform, "def f(): return 'x' * 11_000_000")
    assert failure(record) == "ResultTooLarge"
    assert "FLASHPOOL_RESULT_SPILL" in (record.error or "")
    assert "FLASHPOOL_JOB_RESULT_LIMIT_MB sets the limit" in (record.error or "")
    assert record.output["details"]["size"] > 11_000_000


def test_a_failure_larger_than_the_platform_accepts_is_truncated(platform: Platform) -> None:
    code = """def f():
    class Large(Exception):
        pass
    error = Large("small")
    error.data = "x" * 12_000_000
    raise error"""
    record = run(platform, code)
    assert failure(record) == "Large"


def test_the_heartbeat_names_jobs_in_progress(
    platform: Platform, worker: Worker, tmp_path: Path
) -> None:
    job = platform.submit(request(STAYS, str(tmp_path / "begun"), 60))
    platform.until(lambda: any(job in ping.jobs for ping in platform.pings(worker.id)))
    platform.cancel(job)
    platform.until(lambda: not platform.pings(worker.id)[-1].jobs)


def admin_of(worker: Worker) -> str:
    """The address of the worker's admin listener, its only listener."""
    (found,) = [
        connection.laddr
        for connection in psutil.Process(worker.process.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert found.ip == "127.0.0.1"
    return f"http://127.0.0.1:{found.port}"


def stats_of(worker: Worker) -> dict[str, Any]:
    return httpx.get(f"{admin_of(worker)}/stats", timeout=30, trust_env=False).json()  # type: ignore[no-any-return]


def test_stats_are_served(worker: Worker) -> None:
    page = {"Host": "evil.example"}
    refused = httpx.get(f"{admin_of(worker)}/stats", timeout=30, trust_env=False, headers=page)
    assert refused.status_code == 403
    stats = stats_of(worker)
    assert stats["ready"]
    assert stats["slots"]["total"] == 2


def test_jobs_are_counted(platform: Platform, worker: Worker, tmp_path: Path) -> None:
    def jobs() -> dict[str, int]:
        found: dict[str, int] = stats_of(worker)["jobs"]
        assert found["taken"] == found["running"] + found["done"] + found["failed"]
        return found

    def changed(**figures: int) -> bool:
        now = jobs()
        return {name: now[name] - before[name] for name in figures} == figures

    # A report that the platform accepted may count as waiting for a moment longer.
    until(lambda: not jobs()["reports_waiting"])
    before = jobs()
    assert value(run(platform, NOTHING, 1)) == 1
    assert failure(run(platform, "def f(): raise ValueError('no luck')")) == "ValueError"
    assert failure(platform.wait(platform.submit({"function_name": 3}))) == "InvalidRequest"
    until(lambda: changed(taken=3, running=0, done=1, failed=2, reports_waiting=0))
    mark = tmp_path / "begun"
    stays = platform.submit(request(STAYS, str(mark), 60))
    until(mark.exists)
    assert changed(taken=4, running=1)
    platform.send_stop(stays)
    assert failure(platform.wait(stays)) == "Cancelled"
    until(lambda: changed(taken=4, running=0, done=1, failed=3, reports_waiting=0))
    platform.script(Fault.answers("job-done", 500, times=None))
    last = platform.submit(request(NOTHING, 2))
    until(lambda: changed(taken=5, running=0, done=2, reports_waiting=1))
    shown = httpx.get(f"{admin_of(worker)}/metrics", timeout=30, trust_env=False).text
    assert "flashpool_job_reports_waiting 1.0" in shown
    assert f"flashpool_jobs_taken_total {before['taken'] + 5}.0" in shown
    platform.clear_faults()
    assert value(platform.wait(last)) == 2
    until(lambda: changed(reports_waiting=0))
