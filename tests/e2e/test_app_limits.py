"""Each route of a deployed app has its limit; the route is the one that the app chooses."""

import asyncio
import time
from collections.abc import Iterator

import pytest
from e2e.app_servers import AppServer, serving_app
from e2e.app_sockets import talked
from e2e.server import until
from websockets.asyncio.client import ClientConnection

#: A connection that the client keeps outlives the test that opened it.
pytestmark = pytest.mark.shared_pool

LIMITS = "GET /sleep/{s}=0.4, /sync-sleep/{s}=0.4, WEBSOCKET /ws/echo=0.5, GET /gone=3, *=50"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    variables = {"FLASHPOOL_ROUTE_TIMEOUTS": LIMITS, "FLASHPOOL_GRACE_S": "0.3"}
    folder = tmp_path_factory.mktemp("limits")
    with serving_app(folder, resource="web", ready=False, **variables) as found:
        yield found


def test_a_request_that_came_before_the_app_was_loaded_has_its_routes_limit(
    server: AppServer,
) -> None:
    assert server.http.get("/sleep/30").status_code == 504


def test_a_route_over_its_limit_gets_504_and_the_state_stays(server: AppServer) -> None:
    before = server.http.get("/pid").json()
    began = time.monotonic()
    response = server.http.get("/sleep/30")
    assert time.monotonic() - began < 20
    assert response.status_code == 504
    detail = response.json()
    assert (detail["error_type"], detail["phase"]) == ("Timeout", "run")
    assert "0.4 s" in detail["detail"]
    assert server.http.get("/pid").json() == before
    assert server.http.get("/sleep/0.01").json() == "slept"


def test_a_sync_route_over_its_limit_loses_the_state(server: AppServer) -> None:
    before = server.http.get("/pid").json()
    assert server.http.get("/sync-sleep/30").status_code == 504
    assert server.http.get("/pid").json() != before


def test_limits_and_rules_without_a_route_are_logged(server: AppServer) -> None:
    until(lambda: "GET /sleep/{seconds}: 0.4 s; " in server.log())
    assert "; everything else: 50 s" in server.log()
    assert (
        "FLASHPOOL_ROUTE_TIMEOUTS: no route of the app is GET /gone; its routes: " in server.log()
    )


def test_a_websocket_is_closed_when_nothing_happens_on_it(server: AppServer) -> None:
    async def idle(client: ClientConnection) -> str:
        for _ in range(4):
            await client.send("x")
            await client.recv()
            await asyncio.sleep(0.2)
        return str(await client.recv())

    how, code, reason, _ = talked(server, "/ws/echo", idle)
    assert (how, code) == ("closed", 1001)
    assert "0.5 s" in reason


def test_an_invalid_limit_prevents_the_start(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("wrong")
    limits = "GET /x=soon"
    with (
        pytest.raises(AssertionError, match=f"FLASHPOOL_ROUTE_TIMEOUTS[^\\n]*{limits}"),
        serving_app(folder, resource="web", FLASHPOOL_ROUTE_TIMEOUTS=limits),
    ):
        pass
