"""The real client, unmodified, and our worker, with the stand-in for the cloud between them.

Recipe F is live mode as its users have it: the client provisions endpoints, the platform starts
the image's command for each, and jobs go through its queue. J is the client of an endpoint that
exists, D and E go without a queue, to the SDK's local API.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from e2e.queue_client import Told, local_api, run_client
from e2e.world import World

from support.cloud import ENDPOINT, Platform, Status

pytestmark = [pytest.mark.shared_pool, pytest.mark.timeout(120)]

#: The image's command, from its own folder.
WORKER: Final = [sys.executable, str(Path(__file__).parents[2] / "docker" / "handler.py")]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def variables(world: World) -> dict[str, str]:
    """Variables of every worker; several workers share this machine."""
    return {**world.variables, "FLASHPOOL_ADMIN_PORT": "0"}


@pytest.fixture(scope="module")
def platform(variables: dict[str, str]) -> Iterator[Platform]:
    with Platform(worker=WORKER, worker_variables=variables) as platform:
        yield platform


@pytest.fixture(scope="module")
def live(platform: Platform, client_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """The outcomes of all calls of recipe F."""
    return run_client(client_python, tmp_path_factory.mktemp("live"), "F", platform)


@pytest.fixture(scope="module")
def jobs(platform: Platform, client_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """The outcomes of all calls of recipe J."""
    platform.start_worker(WORKER)
    return run_client(client_python, tmp_path_factory.mktemp("jobs"), "J", platform)


@pytest.mark.parametrize(
    ("call", "value"),
    [
        ("add", 42),
        ("add_later", 42),
        ("together", [1, 2, 3, 4, 5, 6, 7, 8]),
        ("nothing", None),
        ("prints", 18),
        ("imports_module", 42),
        ("stacked", 41),
        ("uses_a_package", "1.0"),
        ("class", 6),
        ("class_state", [12, 14, 101, 16]),
        ("class_together", [n + 100 * k for k in range(3) for n in range(1, 6)]),
        ("class_outlives_an_error", 1001),
        ("class_after_a_crash", [51, True]),
    ],
)
def test_values(live: Told, call: str, value: object) -> None:
    assert live.value(call) == value


@pytest.mark.parametrize(
    ("call", "texts"),
    [
        ("fails", ["ValueError: no such luck", "in fails", "raise ValueError(text)"]),
        ("leaves", ["SystemExit", "3"]),
        ("dies", ["exit code 7"]),
        ("class_breaks", ["KeyError: 'inside the class'", "in breaks"]),
        ("needs_what_is_not_there", ["No set of versions", "alpha==7"]),
    ],
)
def test_errors(live: Told, call: str, texts: list[str]) -> None:
    text = live.text(call)
    assert text.startswith("Remote execution failed: ")
    for one in texts:
        assert one in text


@pytest.mark.slow
def test_output_of_a_call_is_shown(
    client_python: Path, variables: dict[str, str], tmp_path: Path
) -> None:
    """By a fresh worker: the client shows again what the log has of the last 20 s."""
    with Platform(worker=WORKER, worker_variables=variables) as platform:
        told = run_client(client_python, tmp_path / "home", "F", platform, only=["prints"])
    shown = [line.partition("│ ")[2] for line in told.shown.splitlines()]
    printed = [line for line in shown if line in {"printed a line", "and another"}]
    # Twice: it does not see that a line of the log, being JSON, is one of the answer's.
    once = ["printed a line", "and another"]
    assert printed in (once, 2 * once)


def test_every_job_was_reported_once(live: Told, platform: Platform) -> None:
    assert live.calls
    records = [job for job in platform.jobs() if job.endpoint != ENDPOINT]
    assert {len(job.deliveries) for job in records} == {1}
    assert {job.done_count for job in records} == {1}


def test_the_workers_of_a_live_endpoint_are_one_process_each(
    live: Told, platform: Platform
) -> None:
    """No crash of a call, no `sys.exit` in one, ended it: the platform would start another."""
    names = [saved["name"] for saved in platform.endpoints().values()]
    assert names == ["live-calls", "live-inner"]
    assert live.calls
    provisioned = [worker for worker in platform.workers() if worker.endpoint != ENDPOINT]
    assert len(provisioned) == 2
    assert all(worker.running for worker in provisioned)


def test_run_and_wait(jobs: Told) -> None:
    assert jobs.value("run") == [True, 42, "adding\n"]


@pytest.mark.slow
def test_runsync(jobs: Told) -> None:
    assert jobs.value("runsync") == 42


def test_a_failed_job_keeps_its_output(jobs: Told) -> None:
    status, error, success, stdout = jobs.value("fails")
    assert (status, success) == ("FAILED", False)
    assert "ValueError: no luck" in error
    assert "soon" in stdout


def test_a_generator_s_items(jobs: Told) -> None:
    assert jobs.value("stream") == [[0, 1, 4, 9, 16], "COMPLETED"]


@pytest.mark.parametrize("call", ["cancel_asleep", "cancel_busy"])
def test_cancel(jobs: Told, platform: Platform, call: str) -> None:
    job, status, done = jobs.value(call)
    assert (status, done) == ("CANCELLED", True)
    assert platform.job(job).status is Status.CANCELLED


@pytest.mark.slow
def test_cancel_at_once(jobs: Told) -> None:
    _, done = jobs.value("cancel_by_id")
    assert done


def test_no_cancelled_job_keeps_running(jobs: Told, platform: Platform) -> None:
    """The worker's heartbeat names the jobs that it has."""
    assert jobs.calls
    (worker,) = platform.workers(ENDPOINT)
    now = time.monotonic()

    def told_none() -> bool:
        last = platform.pings(worker.id)[-1]
        return last.at > now and not last.jobs

    platform.until(told_none)
    stopped = [job for job in platform.jobs(ENDPOINT) if job.status is Status.CANCELLED]
    assert len(stopped) == 3
    assert not any(done.counted for job in stopped for done in job.dones)


@pytest.mark.slow
def test_the_stub_without_a_queue(
    platform: Platform, client_python: Path, variables: dict[str, str], tmp_path: Path
) -> None:
    """Recipes D and E."""
    with local_api(WORKER, tmp_path, variables) as url:
        stub = run_client(client_python, tmp_path / "d", "D", platform, url=url)
        endpoint = run_client(client_python, tmp_path / "e", "E", platform, url=url)
    assert stub.value("add") == 42
    assert "ValueError: no such luck" in stub.text("fails")
    assert "in plain" in stub.text("fails")
    assert endpoint.value("run_sync") == 42
    # The SDK's local API keeps of a failure only its text, and its client not even that.
    assert endpoint.value("fails") is None
