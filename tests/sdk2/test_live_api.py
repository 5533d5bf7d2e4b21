"""APIs of a dev session: SDK 2.0's own client syncs its module, and calls its routes."""

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from e2e.server import Server, serving, until
from sdk2.sdk_client import APPS, ApiCase, Told, call_api

from support.client import sdk_python

pytestmark = [pytest.mark.shared_pool, pytest.mark.timeout(300)]

CASES: Final[list[ApiCase]] = [
    ("added", "Counter", "post", "/add", {"by": 5}),
    ("value", "Counter", "get", "/n", None),
    ("by path", "Counter", "get", "/items/7", None),
    ("by path and body", "Counter", "post", "/items/7", {"note": "x"}),
    ("not a number", "Counter", "get", "/items/seven", None),
    ("no such route", "Counter", "get", "/elsewhere", None),
    ("raises", "Counter", "post", "/ends", {"how": "raise"}),
    ("exits", "Counter", "post", "/ends", {"how": "exit"}),
    ("still there", "Counter", "get", "/n", None),
    ("crashes", "Counter", "post", "/ends", {"how": "crash"}),
    ("made anew", "Counter", "get", "/n", None),
    ("segfault", "Counter", "post", "/ends", {"how": "segfault"}),
    ("endless", "Counter", "post", "/ends", {"how": "loop"}),
    ("after that", "Counter", "get", "/n", None),
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
    ("factory", "web", "get", "/pieces", None),
    ("factory has no other routes", "web", "get", "/n", None),
]


def variables(folder: Path) -> dict[str, str]:
    """Variables of servers of one endpoint on one machine."""
    return {
        "FLASHPOOL_BASE_PYTHON": str(sdk_python()),
        "FLASHPOOL_LOCAL_DIR": str(folder / "local"),
        "FLASHPOOL_APP_WORKERS": "1",
        "RUNPOD_DEV_APP": "shop",
        "RUNPOD_DEV_RESOURCE": "Counter",
        "RUNPOD_ENDPOINT_ID": "ep",
        "RUNPOD_API_KEY": "account-key",
        "FLASHPOOL_PASS_ENV": "*,RUNPOD_API_KEY",
        "FLASHPOOL_ROUTE_TIMEOUTS": "POST /ends=5",
        "FLASHPOOL_GRACE_S": "0.3",
        "TAG": "t1",
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder, **variables(folder)) as server:
        yield server


@pytest.fixture(scope="module")
def told(server: Server, folder: Path) -> Told:
    home = folder / "home"
    cases: list[ApiCase] = json.loads(json.dumps(CASES).replace("{home}", str(home)))
    return call_api(sdk_python(), "live_api.py", server.url, cases, home=home)


@pytest.mark.parametrize(
    ("call", "value"),
    [
        ("added", {"n": 105}),
        ("value", 105),
        ("by path", 7),
        ("by path and body", {"item": 7, "note": "x"}),
        ("still there", 105),
        ("made anew", 100),
        ("after that", 100),
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
        ("factory", "ab"),
        (
            "facts",
            {
                "name": "__runpod_live__",
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
        ("no such route", "404"),
        ("raises", "500"),
        ("exits", "500"),
        ("crashes", "502"),
        ("segfault", "502"),
        ("endless", "504"),
        ("an object", "500"),
        ("nan", "500"),
        ("factory has no other routes", "404"),
    ],
)
def test_failures(told: Told, call: str, status: str) -> None:
    assert told.text(call).startswith(status)


def sync(server: Server, source: str, resource: str = "Counter", **fields: Any) -> httpx.Response:
    return server.http.post(
        "/_runpod/sync", json={"source": source, "resource": resource, **fields}
    )


def test_ping_is_answered_while_a_route_blocks(told: Told, server: Server, tmp_path: Path) -> None:
    assert told.calls
    assert sync(server, (APPS / "live_api.py").read_text()).status_code == 200
    own, other = tmp_path / "own", tmp_path / "other"
    with ThreadPoolExecutor(1) as pool:
        body = {"own": str(own), "other": str(other)}
        blocked = pool.submit(server.http.post, "/meets", json=body)
        until(own.exists)
        assert server.http.get("/ping").status_code == 200
        assert server.http.get("/n").json() == 100
        other.touch()
        assert blocked.result().json() == "met"


def test_a_source_that_breaks_is_refused_with_its_reason(told: Told, server: Server) -> None:
    assert told.calls
    source = (APPS / "live_api.py").read_text()
    digest = hashlib.sha256(source.encode()).hexdigest()
    assert sync(server, source).json() == {"status": "synced", "hash": digest}
    answer = sync(server, "raise RuntimeError('no model here')")
    assert answer.status_code == 500
    assert "RuntimeError: no model here" in answer.json()["error"]
    # The earlier source is still served.
    assert server.http.get("/n").json() == 100


def test_the_error_for_a_missing_api_names_those_of_the_source(told: Told, server: Server) -> None:
    assert told.calls
    answer = sync(server, (APPS / "live_api.py").read_text(), "other")
    assert answer.status_code == 500
    assert "Counter, with-factory" in answer.json()["error"]


def test_a_form_reaches_a_factory(told: Told, server: Server) -> None:
    assert told.calls
    assert sync(server, (APPS / "live_api.py").read_text(), "with-factory").status_code == 200
    form = server.http.post("/form", data={"a": "1"})
    assert form.json() == {"a": "1"}


def test_a_malformed_sync_is_refused(server: Server) -> None:
    assert server.http.post("/_runpod/sync", content=b"{}").status_code == 422
    origin = {"Origin": "http://page.test"}
    assert server.http.post("/_runpod/sync", content=b"{}", headers=origin).status_code == 401


def test_a_restarted_server_serves_the_last_source_again(
    told: Told, server: Server, folder: Path, tmp_path: Path
) -> None:
    """The client does not send the source again."""
    assert told.calls
    sync(server, (APPS / "live_api.py").read_text())
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    with serving(tmp_path, **variables(folder)) as again:
        assert again.http.post("/add", json={"by": 1}).json() == {"n": 101}
        until(lambda: again.http.get("/pid").status_code == 200)
