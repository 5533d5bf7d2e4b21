"""Tasks: SDK 2.0's own client, and the entry package of images as their pod."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Final

import httpx
import pytest
from e2e.server import until
from sdk2.sdk_client import Case, Told, call_tasks

from support.client import sdk_python

pytestmark = [pytest.mark.shared_pool, pytest.mark.timeout(300)]

TOKEN: Final = "secret"
DOCKER: Final = Path(__file__).parents[2] / "docker"
CASES: Final[list[Case]] = [
    ("collected", "collect", "remote", [[1, 2]]),
    ("raises", "ends", "remote", ["raise"]),
    ("exits", "ends", "remote", ["exit"]),
    ("_exits", "ends", "remote", ["_exit"]),
    ("segfault", "ends", "remote", ["segfault"]),
    ("items", "items", "remote", [2]),
    ("spawned", "collect", "30", [[3]]),
    ("too long", "ends", "1", ["sleep"]),
]
SLEEPS: Final = {
    "function_name": "f",
    "function_code": "def f():\n    import time\n    time.sleep(600)\n",
    "serialization_format": "json",
}
_LISTENS: Final = re.compile(r"a task on (http://\S+)\n")


@dataclass(frozen=True)
class Pod:
    process: "subprocess.Popen[bytes]"
    http: httpx.Client


@contextlib.contextmanager
def running(folder: Path, **variables: str) -> Iterator[Pod]:
    """Run the command of a task's pod."""
    log = folder / "pod.log"
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "TMPDIR": os.environ["TMPDIR"],
        "PYTHONPATH": str(DOCKER),
        "RUNPOD_TASK_TOKEN": TOKEN,
        "RUNPOD_TASK_PORT": "0",
        "FLASHPOOL_ADMIN_PORT": "0",
        "FLASHPOOL_BASE_PYTHON": str(sdk_python()),
        **variables,
    }
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "runpod_sdk_runtime.task.runner"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environ,
            start_new_session=True,
        )
    try:
        found = until(lambda: _LISTENS.search(log.read_text()), 90)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=found[1], headers=headers, timeout=60, trust_env=False) as http:
            until(lambda: http.get("/ping").status_code == 200)
            yield Pod(process, http)
    finally:
        process.terminate()
        process.wait(40)


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    with running(tmp_path_factory.mktemp("pod")) as pod:
        yield pod


@pytest.fixture(scope="module")
def told(pod: Pod, tmp_path_factory: pytest.TempPathFactory) -> Told:
    url, home = str(pod.http.base_url).rstrip("/"), tmp_path_factory.mktemp("home")
    return call_tasks(sdk_python(), "tasks.py", url, TOKEN, CASES, home=home)


def test_values(told: Told) -> None:
    """Values are pickled, so a set is possible."""
    assert told.value("collected") == "{'set': {1, 2}}"
    assert told.value("items") == "[0, 1]"
    assert told.value("spawned") == "{'set': {3}}"


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("raises", "ValueError: no such luck"),
        ("exits", "SystemExit: 3"),
        ("_exits", "exit code 7"),
        ("segfault", "SIGSEGV"),
    ],
)
def test_failures_are_raised_in_the_client(told: Told, call: str, text: str) -> None:
    assert told.text(call).startswith("task execution failed: ")
    assert text in told.text(call)


def test_the_client_s_timeout_ends_a_task(told: Told, pod: Pod) -> None:
    """The client gives up at that time, and the task does not keep running."""
    assert told.calls["too long"]["raised"] == "TimeoutError"
    done = until(lambda: _done(pod))
    assert "its timeout of 1 s" in str(done["error"])


def test_every_request_but_ping_needs_the_token(pod: Pod) -> None:
    without = httpx.Client(base_url=pod.http.base_url, trust_env=False)
    assert without.get("/ping").json() == {"ready": True}
    for method, path in (("GET", "/result"), ("POST", "/submit"), ("POST", "/timeout")):
        assert without.request(method, path).status_code == 401
    wrong = {"Authorization": "Bearer other"}
    assert without.post("/submit", json=SLEEPS, headers=wrong).status_code == 401
    without.close()


def test_one_task_runs_at_a_time_until_its_timeout(pod: Pod) -> None:
    first = pod.http.post("/submit", json={**SLEEPS, "timeout": 600})
    assert first.json() == {"status": "RUNNING", "timeout": 600}
    assert pod.http.post("/submit", json=SLEEPS).status_code == 409
    assert pod.http.get("/result").json() == {"status": "RUNNING"}
    assert pod.http.post("/timeout", json={"timeout": 0.2}).json() == {"timeout": 0.2}
    done = until(lambda: _done(pod))
    assert (done["success"], done["error_type"]) == (False, "Timeout")
    assert "its timeout of 0.2 s" in done["error"]


def _done(pod: Pod) -> "dict[str, object] | None":
    answer = pod.http.get("/result").json()
    return answer["response"] if answer["status"] == "DONE" else None


def test_execute_waits_for_the_response(pod: Pod) -> None:
    body = {
        "function_name": "f",
        "function_code": "def f(): return 5",
        "serialization_format": "json",
    }
    assert pod.http.post("/execute", json=body).json()["json_result"] == 5


@pytest.mark.parametrize("timeout", [-1, "soon", True])
def test_an_invalid_timeout_is_refused(pod: Pod, timeout: object) -> None:
    assert pod.http.post("/timeout", json={"timeout": timeout}).status_code == 422
    assert pod.http.post("/nothing").status_code == 404


def test_a_forgotten_pod_ends_itself(tmp_path: Path) -> None:
    asked: list[bytes] = []

    class Api(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"data":{"podTerminate":null}}')

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Api) as api:
        thread = Thread(target=api.serve_forever)
        thread.start()
        try:
            with running(
                tmp_path,
                RUNPOD_API_BASE_URL=f"http://127.0.0.1:{api.server_port}",
                RUNPOD_POD_ID="pod1",
                RUNPOD_API_KEY="key",
                RUNPOD_TASK_IDLE_TIMEOUT="1",
                FLASHPOOL_HOST="127.0.0.1",
            ):
                began = time.monotonic()
                until(lambda: asked)
                assert time.monotonic() - began > 0.5
        finally:
            api.shutdown()
            thread.join()
    assert b"podTerminate" in asked[0]
    assert b"pod1" in asked[0]
