"""Deployed APIs: the artifact that SDK 2.0's own command builds, and `flashpool serve app`."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest
from e2e.app_sockets import talked
from e2e.server import FLASHPOOL, ServerProcess, until
from sdk2.sdk_client import APPS, ApiCase, Told, call_api
from websockets.asyncio.client import ClientConnection

from support.client import sdk_python

pytestmark = [pytest.mark.shared_pool, pytest.mark.timeout(300)]

_LISTENS: Final = re.compile(rb"the app \S+ on (http://\S+)\n()")
CASES: Final[list[ApiCase]] = [
    ("added", "Counter", "post", "/add", {"by": 5}),
    ("value", "Counter", "get", "/n", None),
    ("by path", "Counter", "get", "/items/7", None),
    ("by path and body", "Counter", "post", "/items/7", {"note": "x"}),
    ("not a number", "Counter", "get", "/items/seven", None),
    ("no such route", "Counter", "get", "/elsewhere", None),
    ("put", "Counter", "put", "/body", [1]),
    ("patch", "Counter", "patch", "/body", {"a": None}),
    ("delete", "Counter", "delete", "/body", None),
    ("no body", "Counter", "post", "/nothing", None),
    ("response", "Counter", "get", "/values/response", None),
    ("a set", "Counter", "get", "/values/set", None),
    ("empty", "Counter", "get", "/values/empty", None),
    ("large", "Counter", "get", "/values/large", None),
    ("an object", "Counter", "get", "/values/object", None),
    ("nan", "Counter", "get", "/values/nan", None),
    ("facts", "Counter", "get", "/facts", None),
    ("meets one", "Counter", "post", "/meets", {"own": "{home}/one", "other": "{home}/two"}),
    ("meets two", "Counter", "post", "/meets", {"own": "{home}/two", "other": "{home}/one"}),
    ("raises", "Counter", "post", "/ends", {"how": "raise"}),
    ("exits", "Counter", "post", "/ends", {"how": "exit"}),
    ("still there", "Counter", "get", "/n", None),
    ("crashes", "Counter", "post", "/ends", {"how": "crash"}),
    ("made anew", "Counter", "get", "/n", None),
    ("segfault", "Counter", "post", "/ends", {"how": "segfault"}),
    ("endless", "Counter", "post", "/ends", {"how": "loop"}),
    ("after that", "Counter", "get", "/n", None),
]
MANIFEST: Final = {
    "version": 1,
    "app": "shop",
    "pythonVersion": "{}.{}".format(*sys.version_info),
    "resources": [
        {"kind": "api", "name": "Counter", "module": "live_api", "qualname": "Counter"},
        {"kind": "api", "name": "with-factory", "module": "live_api", "asgiFactory": "web"},
        {"kind": "queue", "name": "scale", "module": "live_queue", "qualname": "scale"},
    ],
    "excludedPackages": [],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked artifact, with the packages of the client's virtualenv."""
    folder = tmp_path_factory.mktemp("app")
    for name in ("live_api.py", "live_queue.py"):
        shutil.copy(APPS / name, folder)
    (folder / "runpod_manifest.json").write_text(json.dumps(MANIFEST))
    (packages,) = sdk_python().parents[1].glob("lib/python*/site-packages")
    (folder / "env").symlink_to(packages)
    return folder


@contextlib.contextmanager
def serving(folder: Path, resource: str, log: Path) -> Iterator[ServerProcess]:
    """Run the command that serves an artifact by hand."""
    command = [FLASHPOOL, "serve", "app", folder, "--resource", resource, "--port", "0"]
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(log.parent),
        "TMPDIR": os.environ["TMPDIR"],
        "FLASHPOOL_ADMIN_PORT": "0",
        "FLASHPOOL_APP_WORKERS": "1",
        "FLASHPOOL_PASS_ENV": "*,RUNPOD_API_KEY",
        "FLASHPOOL_ROUTE_TIMEOUTS": "POST /ends=5",
        "FLASHPOOL_GRACE_S": "0.3",
        "RUNPOD_API_KEY": "account-key",
        "RUNPOD_ENDPOINT_ID": "ep",
        "TAG": "t1",
    }
    server = ServerProcess(log, command, _LISTENS, env=environ)
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(folder, "Counter", tmp_path_factory.mktemp("server") / "server.log") as server:
        yield server


@pytest.fixture(scope="module")
def told(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Told:
    home = tmp_path_factory.mktemp("home")
    cases: list[ApiCase] = json.loads(json.dumps(CASES).replace("{home}", str(home)))
    client = sdk_python()
    return call_api(client, "live_api.py", server.url, cases, home=home, deployed=True)


@pytest.mark.parametrize(
    ("call", "value"),
    [
        ("added", {"n": 105}),
        ("value", 105),
        ("by path", 7),
        ("by path and body", {"item": 7, "note": "x"}),
        ("put", ["put", [1]]),
        ("patch", ["patch", {"a": None}]),
        ("delete", "deleted"),
        ("no body", None),
        ("response", "not JSON"),
        ("a set", [1]),
        ("empty", {}),
        ("large", "x" * 11_000_000),
        ("meets one", "met"),
        ("meets two", "met"),
        ("still there", 105),
        ("made anew", 100),
        ("after that", 100),
        (
            "facts",
            {
                "name": "live_api",
                "TAG": "t1",
                "RUNPOD_API_KEY": "account-key",
                "RUNPOD_ENDPOINT_ID": "ep",
            },
        ),
    ],
)
def test_values(told: Told, call: str, value: object) -> None:
    assert told.value(call) == value


@pytest.mark.parametrize(
    ("call", "status"),
    [
        ("not a number", "422"),
        ("raises", "500"),
        ("exits", "500"),
        ("crashes", "502"),
        ("segfault", "502"),
        ("endless", "504"),
        ("an object", "500"),
        ("nan", "500"),
    ],
)
def test_failures(told: Told, call: str, status: str) -> None:
    assert told.text(call).startswith(status)


def test_an_unknown_path_raises_endpoint_not_found(told: Told) -> None:
    """The client raises this error for every 404 of a deployed resource."""
    assert told.calls["no such route"]["raised"] == "EndpointNotFound"


def test_query_parameters_are_passed(server: ServerProcess) -> None:
    assert server.http.get("/items/7", params={"double": "yes"}).json() == 14


def test_ping_is_answered_while_a_route_blocks(
    told: Told, server: ServerProcess, tmp_path: Path
) -> None:
    assert told.calls
    own, other = tmp_path / "own", tmp_path / "other"
    with ThreadPoolExecutor(1) as pool:
        body = {"own": str(own), "other": str(other)}
        blocked = pool.submit(server.http.post, "/meets", json=body)
        until(own.exists)
        assert server.http.get("/ping").status_code == 200
        assert server.http.get("/n").json() == 100
        other.touch()
        assert blocked.result().json() == "met"


def test_sending_code_is_refused(server: ServerProcess) -> None:
    assert server.http.post("/execute", json={}).status_code == 404
    assert server.http.post("/_runpod/sync", json={}).status_code == 404


def test_the_application_of_a_factory_is_served(folder: Path, tmp_path: Path) -> None:
    """The application that the factory returns is served unchanged."""
    with serving(folder, "with-factory", tmp_path / "server.log") as server:
        assert server.http.get("/pieces").text == "ab"
        assert server.http.get("/ping").status_code == 200
        assert server.http.post("/form", data={"a": "1"}).json() == {"a": "1"}
        assert server.http.post("/execute").json() == "the user's own"

        async def echo(socket: ClientConnection) -> object:
            await socket.send("hello")
            return await socket.recv()

        assert talked(server, "/echo", echo) == "hello"


def test_check_describes_the_artifact(folder: Path) -> None:
    done = subprocess.run(
        [FLASHPOOL, "check", str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    told = done.stdout + done.stderr
    assert "Counter" in told
    assert "with-factory" in told
    assert "scale" in told
