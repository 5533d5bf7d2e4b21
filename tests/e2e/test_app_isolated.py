"""Routes of a deployed app whose requests each run in a process of their own."""

import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from e2e.app_servers import AppServer, serving_app
from e2e.server import until

#: A connection that the client keeps outlives the test that opened it.
pytestmark = pytest.mark.shared_pool

ISOLATION = "GET /state=call, /sleep/{s}=call, /sync-sleep/{s}=call, /die=call, /upload=call"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    variables = {
        "FLASHPOOL_ROUTE_ISOLATION": ISOLATION,
        "FLASHPOOL_ROUTE_TIMEOUTS": "/sleep/{s}=0.4, /sync-sleep/{s}=0.4, *=60",
        "FLASHPOOL_GRACE_S": "0.3",
    }
    folder = tmp_path_factory.mktemp("isolated")
    with serving_app(folder, resource="web", ready=False, **variables) as found:
        yield found


def isolated(server: AppServer) -> Any:
    return server.stats()["apps"][0]["isolated"]


def shared_pid(server: AppServer) -> Any:
    return server.http.get("/pid").json()


def test_state_is_new_in_each_request_and_so_is_the_lifespan(server: AppServer) -> None:
    before = isolated(server)["served"]
    for _ in range(2):
        assert server.http.get("/state").json() == {"answer": 42, "same": True, "requests": 1}
    until(lambda: isolated(server)["running"] == 0)
    assert isolated(server)["waiting"] == 0
    assert isolated(server)["served"] == before + 2
    assert isolated(server)["load_s"] > 0
    assert server.log().count("the app shuts down") >= 2
    assert "isolation: " in server.log()
    assert "GET /state: call" in server.log()


def test_a_body_reaches_an_isolated_request(server: AppServer) -> None:
    assert server.http.post("/upload", content=b"x" * 2_000_000).json() == {"size": 2_000_000}


def test_a_crash_gets_502_and_affects_no_other_request(server: AppServer) -> None:
    before = shared_pid(server)
    response = server.http.get("/die")
    assert response.status_code == 502
    assert response.json()["error_type"] == "WorkerCrashed"
    assert "5" in response.json()["detail"]
    assert shared_pid(server) == before
    assert server.stats()["apps"][0]["deaths"] == 0


@pytest.mark.parametrize("path", ["/sleep/30", "/sync-sleep/30"])
def test_a_limit_ends_its_process_and_affects_no_other_request(
    server: AppServer, path: str
) -> None:
    before = shared_pid(server)
    began = time.monotonic()
    response = server.http.get(path)
    assert time.monotonic() - began < 25
    assert (response.status_code, response.json()["phase"]) == (504, "run")
    assert shared_pid(server) == before
    until(lambda: isolated(server)["running"] == 0)
    assert psutil.pid_exists(before)


SLOW = """
    import os, threading, time
    from fastapi import FastAPI

    app = FastAPI()
    BORN = os.getpid()
    threading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()
    time.sleep(0.2)


    @app.get("/where")
    async def where():
        return {"pid": os.getpid(), "born_here": BORN == os.getpid(), "threads": threading.active_count()}
"""


def test_an_app_that_starts_threads_is_isolated_with_a_warning(tmp_path: Path) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "handler_shop.py").write_text(textwrap.dedent(SLOW))
    with serving_app(tmp_path, folder, FLASHPOOL_ROUTE_ISOLATION="/where=call") as server:
        seen: list[Any] = []

        def because() -> str:
            response = server.http.get("/where")
            assert response.status_code == 200
            seen.append(response.json())
            found: str = isolated(server)["slow_because"]
            assert isolated(server)["load_s"] > 0.1
            return found

        # Modules that can be preloaded are; the rest of the time is the app's own.
        until(lambda: because() == "that is what its own modules and its start-up take", 90)
        assert len({one["pid"] for one in seen}) == len(seen)
        assert all(one["born_here"] and one["threads"] == 2 for one in seen)
        assert "a request of an isolated route paid the " in server.log()
        assert "that is what its own modules and its start-up take" in server.log()
