"""`flashpool serve auto`, as an injected container starts it."""

import os
import subprocess
from pathlib import Path
from typing import Final

import pytest
from e2e.endpoints import EndpointWorld
from e2e.server import FLASHPOOL, request, until

SERVE_AUTO: Final = (FLASHPOOL, "serve", "auto")


def refused(**variables: str) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLASH", "RUNPOD"))}
    ended = subprocess.run(
        SERVE_AUTO,
        env={**kept, "FLASHPOOL_ADMIN_PORT": "0", **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    return ended.stderr


def test_the_manifest_or_variables_choose_the_front_end() -> None:
    # The test recognises each front-end by its error when it cannot start.
    assert "There are no jobs to serve" in refused(RUNPOD_RUNTIME_KIND="queue")
    assert "0.0.0.0" in refused(RUNPOD_RUNTIME_KIND="api", FLASHPOOL_HOST="0.0.0.0")
    assert "RUNPOD_RUNTIME_KIND='other'" in refused(RUNPOD_RUNTIME_KIND="other")


def test_a_named_resource_is_not_served_live(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.tar.gz")
    for name in ("FLASH_RESOURCE_NAME", "RUNPOD_RESOURCE_NAME"):
        said = refused(**{name: "shop"}, FLASHPOOL_ARTIFACT=missing, FLASHPOOL_ARTIFACT_WAIT_S="0")
        assert f"no artifact at {missing}" in said


def test_a_manifest_with_jobs_is_a_queue_whatever_a_variable_says(
    shop_artifact: Path, tmp_path: Path
) -> None:
    said = refused(
        FLASH_RESOURCE_NAME="counter",
        FLASH_ENDPOINT_TYPE="lb",
        FLASHPOOL_ARTIFACT=str(shop_artifact),
        FLASHPOOL_LOCAL_DIR=str(tmp_path / "local"),
        FLASHPOOL_APP_DIR=str(tmp_path / "app"),
    )
    assert "FLASH_ENDPOINT_TYPE is ignored" in said
    assert "There are no jobs to serve" in said


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.shared_pool
def test_a_manifest_with_routes_is_served_over_http(
    shop_artifact: Path, tmp_path: Path, client_python: Path
) -> None:
    world = EndpointWorld(tmp_path / "world", client_python)
    variables = {"RUNPOD_RUNTIME_KIND": "queue", "FLASHPOOL_PORT": "0"}
    with world.endpoint(shop_artifact, command=SERVE_AUTO, **variables) as server:
        until(lambda: server.http.get("/ping").status_code == 200, 300)
        assert server.http.get("/items/3").status_code == 200
        body = request("def f():\n    return 1")
        assert server.http.post("/execute", json=body).status_code == 404
