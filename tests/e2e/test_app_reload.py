"""SIGHUP reloads a deployed app: the successor takes over, or the old app keeps serving."""

import concurrent.futures
import signal
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2e.app_servers import AppServer, serving_app
from e2e.server import until

from support.archives import file, write_archive

#: A connection that the client keeps outlives the test that opened it.
pytestmark = pytest.mark.shared_pool

CODE = """
    import asyncio, os
    from fastapi import FastAPI

    app = FastAPI()
    VERSION = "{version}"


    @app.get("/version")
    async def version(seconds: float = 0.0):
        await asyncio.sleep(seconds)
        return VERSION
"""


def write(folder: Path, version: str, more: str = "") -> None:
    code = textwrap.dedent(CODE.format(version=version)) + more
    (folder / "handler_shop.py").write_text(code)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "app"
    found.mkdir()
    write(found, "old")
    return found


@pytest.fixture
def server(tmp_path: Path, folder: Path) -> Iterator[AppServer]:
    with serving_app(tmp_path, folder, FLASHPOOL_APP_START_TIMEOUT_S="90") as found:
        yield found


def in_background(server: AppServer, path: str) -> "concurrent.futures.Future[Any]":
    pool = concurrent.futures.ThreadPoolExecutor(1)
    try:
        return pool.submit(lambda: httpx.get(server.url + path, timeout=60, trust_env=False))
    finally:
        pool.shutdown(wait=False)


def apps(server: AppServer) -> Any:
    return server.stats()["apps"]


def test_the_successor_serves_and_the_old_app_finishes(server: AppServer, folder: Path) -> None:
    slow = in_background(server, "/version?seconds=3")
    until(lambda: apps(server)[0]["workers"][0]["requests"] == 1)
    write(folder, "another")
    server.process.send_signal(signal.SIGHUP)
    seen = []

    def is_new() -> bool:
        response = server.http.get("/version")
        assert response.status_code == 200
        seen.append(response.json())
        return bool(seen[-1] == "another")

    until(is_new, 60)
    assert set(seen[:-1]) <= {"old"}
    assert slow.result().json() == "old"
    until(lambda: len(apps(server)) == 1)
    (worker,) = apps(server)[0]["workers"]
    assert worker["generation"] == 2
    assert "reloaded: the successor serves" in server.log()


def test_a_successor_that_cannot_be_loaded_leaves_the_old_app_serving(
    server: AppServer, folder: Path
) -> None:
    before = apps(server)[0]["workers"]
    write(folder, "broken", "\n1 / 0\n")
    server.process.send_signal(signal.SIGHUP)
    until(lambda: apps(server)[0]["note"], 60)
    assert "ZeroDivisionError" in apps(server)[0]["note"]
    assert "the reload failed, and the old app serves on: " in server.log()
    assert server.http.get("/version").json() == "old"
    assert server.http.get("/ping").status_code == 200
    until(lambda: len(apps(server)) == 1)
    assert [one["pid"] for one in apps(server)[0]["workers"]] == [one["pid"] for one in before]
    (folder / "handler_shop.py").rename(folder / "handler_other.py")
    server.process.send_signal(signal.SIGHUP)
    until(lambda: "no resource 'shop'" in server.log())
    assert server.http.get("/version").json() == "old"


def test_an_archive_that_cannot_be_loaded_is_replaced_by_the_next_one(
    tmp_path: Path, folder: Path
) -> None:
    archive = tmp_path / "shop.tar.gz"

    def pack() -> None:
        write_archive(archive, [file("handler_shop.py", (folder / "handler_shop.py").read_bytes())])

    write(folder, "broken", "\n1 / 0\n")
    pack()
    variables = {"FLASHPOOL_LOCAL_DIR": str(tmp_path / "local")}
    with serving_app(tmp_path, archive, ready=False, **variables) as server:
        until(lambda: "ZeroDivisionError" in server.http.get("/ping").text, 60)
        write(folder, "another")
        pack()
        until(lambda: server.http.get("/ping").status_code == 200, 60)
        assert server.http.get("/version").json() == "another"
        assert "reloading: the old app cannot be loaded, and is replaced" in server.log()
        until(lambda: len(apps(server)) == 1)


ITEMS = """

@app.get("/items/{item_id}")
async def item(item_id: int):
    return item_id


@app.get("/broken")
async def broken():
    raise ValueError("no luck")
"""


def by_route(server: AppServer) -> dict[str, dict[str, int]]:
    (app,) = (one for one in apps(server) if not one["retiring"])
    return {one["route"]: one["requests"] for one in app["routes"]}


def test_requests_are_counted_by_route_through_a_reload(server: AppServer, folder: Path) -> None:
    write(folder, "another", ITEMS)
    server.process.send_signal(signal.SIGHUP)
    until(lambda: server.http.get("/version").json() == "another", 60)
    before = by_route(server)["/version"]["2xx"]
    assert before > 0
    for number in range(20):
        assert server.http.get(f"/items/{number}").json() == number
    assert server.http.get("/items/no-number").status_code == 422
    assert server.http.get("/broken").status_code == 500
    assert server.http.get("/secret-of-a-user").status_code == 404
    assert server.http.get("/version").json() == "another"
    expected = {
        "(none)": {"4xx": 1},
        "/broken": {"5xx": 1},
        "/items/{item_id}": {"2xx": 20, "4xx": 1},
        "/version": {"2xx": before + 1},
    }
    # A request is counted when its answer has been sent.
    until(lambda: by_route(server) == expected)
    shown = server.admin("GET", "/metrics", token="").text
    assert 'flashpool_route_requests_total{route="/items/{item_id}",status="2xx"} 20.0' in shown
    assert 'flashpool_route_request_seconds_count{route="/items/{item_id}"} 21.0' in shown
    assert "secret-of-a-user" not in shown + str(server.stats()["apps"])
