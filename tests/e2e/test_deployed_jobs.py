"""Jobs of deployed resources: artifacts of the real client, the image's entry point, the real SDK.

The reference is the handler that the client generated, under the SDK's own loop.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
from e2e.endpoints import EndpointWorld
from e2e.queue_jobs import HANDLER, working
from e2e.server import until

from support.artifacts import PROJECTS, build_artifact, unpacked
from support.cloud import JobRecord, Platform, Status, Worker

pytestmark = [pytest.mark.shared_pool, pytest.mark.timeout(600)]

#: An app imports much, and the machine may be busy.
LIMIT_S: Final = 120.0

Serve = Callable[..., "AbstractContextManager[Worker]"]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_artifact("queue", tmp_path_factory.mktemp("queue"))


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with Platform() as platform:
        yield platform


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, client_python: Path) -> EndpointWorld:
    return EndpointWorld(tmp_path_factory.mktemp("world") / "world", client_python)


@pytest.fixture
def serve(platform: Platform, artifact: Path, world: EndpointWorld, tmp_path: Path) -> Serve:
    """Run a worker of a resource."""

    def serve(resource: str, **variables: str) -> "AbstractContextManager[Worker]":
        ours = {
            **world.variables,
            "FLASH_RESOURCE_NAME": resource,
            "FLASH_BUILD_ARTIFACT_PATH": str(artifact),
            **variables,
        }
        return working(tmp_path, platform, **ours)

    return serve


def run(platform: Platform, given: Any, **fields: Any) -> JobRecord:
    return platform.wait(platform.submit(given, **fields), LIMIT_S)


def value(record: JobRecord) -> Any:
    assert record.status is Status.COMPLETED, record.error
    assert record.done_count == 1
    return record.output


def failure(record: JobRecord) -> str:
    assert record.status is Status.FAILED, record.output
    assert record.done_count == 1
    assert record.error
    return record.error


def test_a_function_of_one_job_at_a_time(platform: Platform, serve: Serve, tmp_path: Path) -> None:
    with serve("plain", FLASHPOOL_CALL_TIMEOUT_S="20") as worker:
        assert value(run(platform, {"__empty": True})) == 1
        assert value(run(platform, None)) == 2
        assert value(run(platform, {"do": "value", "value": {"a": [1, None]}})) == {"a": [1, None]}
        assert value(run(platform, {"do": "run"})) == "ran"
        variables = value(run(platform, {"do": "variables"}))
        assert {"FLASH_RESOURCE_NAME", "RUNPOD_ENDPOINT_ID", "RUNPOD_POD_ID"} <= set(variables)
        assert not [name for name in variables if name.startswith("RUNPOD_WEBHOOK")]
        assert "RUNPOD_AI_API_KEY" not in variables

        told = run(platform, {"do": "fail", "value": "no luck"})
        assert failure(told) == "no luck"
        assert "in plain" in told.output["traceback"]
        assert failure(run(platform, {"do": "fail"})) == "None"
        for given, words in [
            ({"nothing": 1}, "unexpected keyword argument"),
            ([1], "Malformed input: expected dict, got list"),
            ("x", "Malformed input: expected dict, got str"),
            ({"do": "exit"}, "SystemExit: 3"),
            ({"do": "set"}, "the result['a'][1] is of the type set"),
            ({"do": "large", "value": 11_000_000}, "ResultTooLarge"),
        ]:
            assert words in failure(run(platform, given))
        told = run(platform, {"do": "value", "value": {"error": "mine", "more": 1}})
        assert (failure(told), told.output) == ("mine", {"more": 1})
        assert value(run(platform, {"do": "count"})) == 3

        assert "SIGSEGV" in failure(run(platform, {"do": "die"}))
        assert value(run(platform, {"do": "count"})) == 1
        assert "and its state is lost" in worker.output()

        mark = tmp_path / "begun"
        job = platform.submit({"do": "stay", "path": str(mark), "value": 60})
        until(mark.exists, LIMIT_S)
        until(lambda: f'"requestId": "{job}", "message": "begun"' in worker.output(), LIMIT_S)
        platform.cancel(job)
        assert value(run(platform, {"do": "count"})) == 1
        assert platform.job(job).status is Status.CANCELLED

        policy = {"executionTimeout": 3000}
        late = {"do": "stay", "path": str(tmp_path / "late"), "value": 60}
        told = platform.wait(platform.submit(late, policy=policy), LIMIT_S)
        assert "executionTimeout" in failure(told)
        assert told.output["error_type"] == "Timeout"

        mark = tmp_path / "last"
        job = platform.submit({"do": "stay", "path": str(mark), "value": 1.0})
        until(mark.exists, LIMIT_S)
        worker.process.send_signal(signal.SIGTERM)
        assert value(platform.wait(job, LIMIT_S)) == "over"
        assert worker.wait() == 0


@pytest.mark.slow
def test_several_jobs_of_a_function_that_is_no_coroutine(
    platform: Platform, serve: Serve, tmp_path: Path
) -> None:
    with serve("sync-conc"):
        paths = [tmp_path / str(n) for n in range(3)]
        jobs = [platform.submit({"path": str(path), "seconds": 0.5}) for path in paths]
        assert len({value(record) for record in platform.wait_all(jobs, LIMIT_S)}) == 1
        jobs = [platform.submit({"path": f"{path}x", "seconds": 20}) for path in paths[:2]]
        until(lambda: all(Path(f"{path}x").exists() for path in paths[:2]), LIMIT_S)
        jobs.append(platform.submit({"die": True}))
        for record in platform.wait_all(jobs, LIMIT_S):
            assert "exit code 5" in failure(record)
        assert value(run(platform, {}))


@pytest.mark.slow
def test_several_jobs_of_a_coroutine_function_share_a_loop(
    platform: Platform, serve: Serve
) -> None:
    with serve("async-conc"):
        jobs = [platform.submit({"seconds": 0.3}) for _ in range(3)]
        assert len({value(record) for record in platform.wait_all(jobs, LIMIT_S)}) == 1


@pytest.mark.slow
def test_classes(platform: Platform, serve: Serve) -> None:
    with serve("counter"):
        assert value(run(platform, {"method": "increase", "by": 2})) == 2
        assert value(run(platform, {"method": "increase", "__empty": True})) == 3
        assert value(run(platform, {"method": "get", "__empty": True})) == 3
        assert "multiple methods" in failure(run(platform, {"__empty": True}))
        assert "unknown method 'x'" in failure(run(platform, {"method": "x"}))
    with serve("mixed"):
        assert value(run(platform, {"method": "plain", "x": 1})) == 2
        assert value(run(platform, {"method": "later", "x": 1})) == 3
        assert "multiple methods" in failure(run(platform, None))
        assert "expected dict, got list" in failure(run(platform, [1]))
    with serve("single"):
        assert value(run(platform, {"method": "only", "args": [1, "b"]})) == [1, "b"]


@pytest.mark.slow
def test_items_are_streamed_and_listed(platform: Platform, serve: Serve, tmp_path: Path) -> None:
    with serve("items"):
        job = platform.submit({"path": str(tmp_path / "go")})
        platform.until(lambda: len(platform.job(job).stream) == 3, LIMIT_S)
        assert not platform.job(job).final
        (tmp_path / "go").touch()
        record = platform.wait(job, LIMIT_S)
        assert value(record) == record.items == [{"n": 0}, {"n": 1}, {"n": 2}]
        assert record.dones[0].is_stream
        assert "no more" in failure(run(platform, {"fails": 1}))
    with serve("items-later", FLASHPOOL_RETURN_AGGREGATE_STREAM="no"):
        record = run(platform, {"number": 2})
        assert record.items == [0, 1]


@pytest.mark.slow
def test_apps_that_cannot_be_loaded(platform: Platform, serve: Serve, tmp_path: Path) -> None:
    with serve("broken"):
        assert "no model here" in failure(run(platform, {"__empty": True}))
    with serve("nothing"):
        assert "'nothing'" in failure(run(platform, {}))
    job = platform.submit({"x": 1})
    gone = {
        "FLASH_BUILD_ARTIFACT_PATH": str(tmp_path / "none.tar.gz"),
        "FLASHPOOL_APP_DIR": str(tmp_path / "app"),
        "FLASH_RESOURCE_NAME": "plain",
        "FLASHPOOL_ARTIFACT_WAIT_S": "0.1",
        "FLASHPOOL_APP_GIVE_UP_S": "1",
        "FLASHPOOL_ADMIN_PORT": "0",
        "FLASHPOOL_STATE_DIR": str(tmp_path / "state"),
    }
    worker = platform.start_worker(HANDLER, variables=gone)
    assert worker.wait(LIMIT_S) == 1
    assert "FLASHPOOL_APP_GIVE_UP_S" in worker.output()
    assert "none.tar.gz" in worker.output()
    assert platform.job(job).status is Status.IN_QUEUE
    platform.cancel(job)


@pytest.mark.slow
def test_the_same_handlers_under_the_sdks_own_loop(
    platform: Platform, serve: Serve, artifact: Path, client_python: Path, tmp_path: Path
) -> None:
    """Where the SDK's loop answers at all, the answer is the same."""
    inputs: list[Any] = [
        {"do": "value", "value": given}
        for given in (5, "x", None, [1, [2]], {"a": {"b": 1}}, {"error": "mine", "more": 1})
    ]
    inputs += [{"__empty": True}, [1], {"nothing": 1}, {"do": "fail", "value": "no luck"}]
    folder = unpacked(artifact, tmp_path / "reference")

    def reports() -> list[Any]:
        records = [run(platform, given) for given in inputs]
        return [(one.status, one.output, (one.error or "")) for one in records]

    with serve("plain"):
        ours = reports()
    with reference(platform, client_python, folder, "plain"):
        theirs = reports()
    for (status, output, error), (other_status, other_output, other_error) in zip(
        ours, theirs, strict=True
    ):
        assert (status, error) == (other_status, other_error)
        if isinstance(output, dict) and "traceback" in output:
            output, other_output = output.keys(), other_output.keys()
        assert output == other_output


@contextlib.contextmanager
def reference(platform: Platform, python: Path, folder: Path, resource: str) -> Iterator[Worker]:
    variables = {
        "FLASH_RESOURCE_NAME": resource,
        "PYTHONPATH": str(folder),
        "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
    }
    handler = folder / f"handler_{resource}.py"
    worker = platform.start_worker([str(python), str(handler)], variables=variables)
    try:
        yield worker
    finally:
        children = psutil.Process(worker.process.pid).children(recursive=True)
        worker.process.kill()
        worker.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


@pytest.mark.slow
def test_the_real_client(
    platform: Platform,
    artifact: Path,
    world: EndpointWorld,
    client_python: Path,
    tmp_path: Path,
) -> None:
    workers = []
    for resource in ("plain", "counter", "sync-conc"):
        platform.add_endpoint(resource)
        variables = {
            **world.variables,
            "FLASH_RESOURCE_NAME": resource,
            "FLASH_BUILD_ARTIFACT_PATH": str(artifact),
            "FLASHPOOL_ADMIN_PORT": "0",
            "FLASHPOOL_STATE_DIR": str(tmp_path / resource),
        }
        workers.append(platform.start_worker(HANDLER, endpoint=resource, variables=variables))
    # The client writes to its working directory.
    project = shutil.copytree(PROJECTS / "queue", tmp_path / "project")
    done = subprocess.run(
        [client_python, Path(__file__).with_name("client") / "deployed_jobs.py"],
        cwd=project,
        env={
            "HOME": str(tmp_path),
            "FLASH_SENTINEL_TIMEOUT": "250",
            "PATH": os.environ["PATH"],
            **platform.client_env(),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    values = {call: one["value"] for call, one in told.items() if "value" in one}
    assert values == {
        "value": {"a": [1, None]}, "nothing": 1, "empty": {}, "after": 1,
        "first": 2, "second": 3, "get": 3, "together": 1,
    }, told  # fmt: skip
    for call, words in {
        "fail": "no luck",
        "set": "the result['a'][1] is of the type set",
        "exit": "SystemExit: 3",
        "die": "SIGSEGV",
        "unknown": "unexpected keyword argument",
    }.items():
        assert words in told[call]["error"], told[call]
    for worker in workers:
        assert worker.stop() == 0, worker.last_words()
