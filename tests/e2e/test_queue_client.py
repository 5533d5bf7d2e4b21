"""The real client, unmodified, and our worker, with the stand-in for the cloud between them.

Recipe F is live mode as its users have it: the client provisions endpoints, the platform starts
the image's command for each, and jobs go through its queue. J is the client of an endpoint that
exists, D and E go without a queue, to the SDK's local API.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from e2e.queue_client import Told, local_api, run_client
from e2e.world import World

from support.cloud import ENDPOINT, Platform, Status

pytestmark = pytest.mark.shared_pool

#: The image's command, from its own folder.
WORKER: Final = [sys.executable, str(Path(__file__).parents[2] / "docker" / "handler.py")]
#: What does not hold yet, and why: the only place that knows.
WAITING: Final = {"class_state": "a class has a new instance in every call until issue 4 is done"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def variables(world: World) -> dict[str, str]:
    """Of every worker: several share this machine, and stacked calls need the key."""
    return {
        **world.variables,
        "FLASHPOOL_ADMIN_PORT": "0",
        "FLASHPOOL_PASS_ENV": "RUNPOD_API_KEY,RUNPOD_ENDPOINT_BASE_URL",
    }


@pytest.fixture(scope="module")
def platform(variables: dict[str, str]) -> Iterator[Platform]:
    with Platform(worker=WORKER, worker_variables=variables) as platform:
        yield platform


@pytest.fixture(scope="module")
def live(platform: Platform, client_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """All calls of recipe F."""
    return run_client(client_python, tmp_path_factory.mktemp("live"), "F", platform)


@pytest.fixture(scope="module")
def jobs(platform: Platform, client_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """All calls of recipe J."""
    platform.start_worker(WORKER)
    return run_client(client_python, tmp_path_factory.mktemp("jobs"), "J", platform)


def waiting(call: str, *values: object) -> object:
    """A parameter that is expected to fail while it waits for something."""
    reason = WAITING.get(call, "")
    marks = [pytest.mark.xfail(reason=reason)] if reason else []
    return pytest.param(call, *values, id=call, marks=marks)


@pytest.mark.parametrize(
    ("call", "value"),
    [
        waiting("add", 42),
        waiting("add_later", 42),
        waiting("together", [1, 2, 3, 4, 5, 6, 7, 8]),
        waiting("nothing", None),
        waiting("prints", 18),
        waiting("imports_module", 42),
        waiting("stacked", 41),
        waiting("uses_a_package", "1.0"),
        waiting("class", 6),
        waiting("class_state", [12, 14, 101, 16]),
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


def test_what_a_call_prints_is_shown(live: Told) -> None:
    """Once, although it is in the worker's log as well as in the answer."""
    assert live.shown.count("printed a line") == 1
    assert live.shown.count("and another") == 1
    assert live.shown.count("about to fail") == 1


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


def test_runsync(jobs: Told) -> None:
    assert jobs.value("runsync") == 42


def test_a_failed_job_keeps_its_output(jobs: Told) -> None:
    status, error, success, stdout = jobs.value("fails")
    assert (status, success) == ("FAILED", False)
    assert "ValueError: no luck" in error
    assert "soon" in stdout


@pytest.mark.parametrize("call", ["cancel_asleep", "cancel_busy"])
def test_cancel(jobs: Told, platform: Platform, call: str) -> None:
    job, status, done = jobs.value(call)
    assert (status, done) == ("CANCELLED", True)
    # Its slot is free again: it was not left to run.
    after = platform.wait(platform.submit({**platform.job(job).input, **_QUICK}), 20)
    assert after.status is Status.COMPLETED


#: In place of the code of a job that never ends.
_QUICK: Final = {"function_code": "def f():\n    return 1\n"}


def test_cancel_at_once(jobs: Told) -> None:
    _, done = jobs.value("cancel_by_id")
    assert done


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
