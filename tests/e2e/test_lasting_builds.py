"""Builds over HTTP that take longer than their clients wait."""

from pathlib import Path

import httpx
import pytest
from e2e.server import report, request, until
from e2e.world import VERSION, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.watch_uv()
    return made


def test_a_build_continues_when_its_client_disconnects(world: World) -> None:
    with world.server() as server:
        with world.holding("install"):
            with pytest.raises(httpx.ReadTimeout):
                body = request(VERSION, dependencies=["alpha==1.0"])
                httpx.post(f"{server.url}/execute", json=body, timeout=8, trust_env=False)
            until(lambda: "no call waits for a build any more" in server.log())
        until(lambda: world.stored("envs"))
        resolved = len(world.uv_runs("compile"))
        answer = server.execute(VERSION, dependencies=["alpha==1.0"])
        assert answer["json_result"] == "1.0", report(answer)
        assert len(world.uv_runs("compile")) == resolved == 1
        assert server.stop() == 0


@pytest.mark.slow
def test_a_build_without_clients_ends_with_the_server(world: World) -> None:
    with world.server() as server, world.holding("install"):
        with pytest.raises(httpx.ReadTimeout):
            body = request(VERSION, dependencies=["alpha==1.0"])
            httpx.post(f"{server.url}/execute", json=body, timeout=8, trust_env=False)
        until(lambda: "no call waits for a build any more" in server.log())
        assert server.stop() == 0
    assert not world.stored("envs")
    assert not world.stored("scratch")
