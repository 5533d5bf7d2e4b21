"""Programs of examples/sdk2 print the same in a dev session of `rp` and deployed by `rp flash deploy`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from e2e.endpoints import EndpointWorld
from e2e.server import serving
from sdk2.rp_command import build_artifact, run_rp
from sdk2.sdk_client import APPS, REDIRECT

from support.client import ROOT, sdk_python
from support.cloud import Platform, Worker

pytestmark = [pytest.mark.shared_pool, pytest.mark.timeout(600)]

EXAMPLES: Final = ROOT / "examples" / "sdk2"
WORKER: Final = [sys.executable, str(ROOT / "docker" / "handler.py")]
#: The expected output of each program.
PRINTED: Final = {
    "hello": ["hello world!"],
    "counter": ["{'count': 105}", "count: 105"],
    "stream": ["one", "after", "the", "other", "> LOUD > LATER", "RemoteExecutionError True"],
}
#: Runs a program's entry point outside of a dev session, against deployed resources.
RUN_ENTRY_POINT: Final = """
import importlib, sys
from runpod.apps.entrypoint import get_entrypoint, run_entrypoint
sys.path.insert(0, sys.argv[1])
importlib.import_module(sys.argv[2])
run_entrypoint(get_entrypoint())
"""


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    """Variables of servers in a dev session."""
    return {
        "FLASHPOOL_BASE_PYTHON": str(sdk_python()),
        "FLASHPOOL_LOCAL_DIR": str(tmp_path / "local"),
        "FLASHPOOL_ADMIN_PORT": "0",
    }


def printed(lines: list[str], name: str) -> list[str]:
    """Return the program's lines from the command's output."""
    return [line for line in lines if line in PRINTED[name]]


@pytest.mark.parametrize("name", ["hello", pytest.param("stream", marks=pytest.mark.slow)])
def test_functions_of_a_dev_session(name: str, variables: dict[str, str], tmp_path: Path) -> None:
    """Each endpoint that the command provisions gets a worker, which stops at the end."""
    with Platform(worker=WORKER, worker_variables=variables) as platform:
        command = ("flash", "dev", "--once", EXAMPLES / f"{name}.py")
        lines = run_rp(*command, folder=tmp_path, variables=platform.client_env())
        assert printed(lines, name) == PRINTED[name]
        assert platform.endpoints() == {}


@pytest.mark.slow
def test_a_function_that_calls_another_endpoint(variables: dict[str, str], tmp_path: Path) -> None:
    """The function finds the endpoint by name, with the account's key; each has its variables."""
    with Platform(worker=WORKER, worker_variables=variables) as platform:
        platform.pods.add_variables({"RUNPOD_API_BASE_URL": platform.urls().api})
        command = ("flash", "dev", "--once", APPS / "dev_session.py")
        lines = run_rp(*command, folder=tmp_path, variables=platform.client_env())
    assert "['t1', 2]" in lines


@pytest.mark.slow
def test_an_api_of_a_dev_session(variables: dict[str, str], tmp_path: Path) -> None:
    with Platform() as platform, serving(tmp_path, **variables) as server:
        leads = {"PYTHONPATH": str(REDIRECT), "API_URL": server.url}
        command = ("flash", "dev", "--once", EXAMPLES / "counter.py")
        lines = run_rp(*command, folder=tmp_path, variables={**platform.client_env(), **leads})
    assert printed(lines, "counter") == PRINTED["counter"]


@pytest.fixture
def world(tmp_path: Path) -> EndpointWorld:
    return EndpointWorld(tmp_path / "world", sdk_python())


def run_deployed(name: str, folder: Path, variables: dict[str, str]) -> list[str]:
    command = ("-c", RUN_ENTRY_POINT, EXAMPLES, name)
    return run_rp(*command, folder=folder, variables=variables, program="python")


@pytest.mark.slow
def test_deployed_functions(world: EndpointWorld, tmp_path: Path) -> None:
    archive = build_artifact(EXAMPLES / "stream.py", tmp_path)
    with Platform() as platform:
        list(_start_workers(platform, world, archive))
        lines = run_deployed("stream", tmp_path, platform.client_env())
    assert lines == PRINTED["stream"]


def _start_workers(platform: Platform, world: EndpointWorld, archive: Path) -> Iterator[Worker]:
    """Start a worker for each resource, because each has an endpoint of its own."""
    for resource in ("words", "shout", "crash"):
        platform.add_endpoint(resource)
        variables = {
            **world.variables,
            "FLASHPOOL_ARTIFACT": str(archive),
            "FLASHPOOL_APP_DIR": str(world.folder / f"app-{resource}"),
            "FLASHPOOL_STATE_DIR": str(world.folder / resource),
            "FLASH_RESOURCE_NAME": resource,
            "FLASHPOOL_ADMIN_PORT": "0",
            "FLASHPOOL_APP_WORKERS": "1",
        }
        yield platform.start_worker(WORKER, endpoint=resource, variables=variables)


@pytest.mark.slow
def test_a_deployed_api(world: EndpointWorld, tmp_path: Path) -> None:
    archive = build_artifact(EXAMPLES / "counter.py", tmp_path)
    with world.endpoint(archive, "Counter", FLASHPOOL_APP_WORKERS="1") as server:
        server.wait_ready()
        leads = {"PYTHONPATH": str(REDIRECT), "API_URL": server.url}
        lines = run_deployed("counter", tmp_path, leads)
    assert lines == PRINTED["counter"]
