"""Where a resource is named, nothing takes live jobs: every way to start that, really started.

Load-balanced endpoints are served: test_endpoint.py.

A deployed endpoint is open to its users, who must not be able to send it code.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from e2e.queue_client import _free_port
from e2e.server import FLASHPOOL, request

DOCKER: Final = Path(__file__).parents[2] / "docker"
MARK: Final = "the job ran"
JOB: Final = json.dumps({"input": request(f"def f():\n    return {MARK!r}")})
#: A platform that nobody needs to reach.
QUEUE: Final = {"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:9/v2/e/job-take/$ID?gpu=none"}

HANDLER: Final = [sys.executable, str(DOCKER / "handler.py")]
SERVE_QB: Final = [str(FLASHPOOL), "serve", "qb"]

#: Name, command, further variables.
WAYS: Final[list[tuple[str, list[str], dict[str, str]]]] = [
    ("qb", SERVE_QB, QUEUE),
    ("qb-image", HANDLER, QUEUE),
    ("qb-one-job", [*SERVE_QB, "--test_input", JOB], {}),
    ("qb-job-of-a-file", SERVE_QB, {}),
    ("qb-api", [*SERVE_QB, "--rp_serve_api", "--rp_api_port", "{port}"], {}),
    ("qb-realtime", SERVE_QB, {"RUNPOD_REALTIME_PORT": "{port}", "RUNPOD_POD_ID": "pod"}),
]


def start(
    command: list[str], folder: Path, variables: dict[str, str]
) -> "subprocess.CompletedProcess[str]":
    """Run it to its end, which comes by itself where it is refused."""
    port = str(_free_port())
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLASH", "RUNPOD"))}
    given = {"FLASHPOOL_ADMIN_PORT": "0", "PYTHONPATH": str(DOCKER), **variables}
    return subprocess.run(
        [part.replace("{port}", port) for part in command],
        cwd=folder,
        env={**kept, **{k: v.replace("{port}", port) for k, v in given.items()}},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("name", ["FLASH_RESOURCE_NAME", "RUNPOD_RESOURCE_NAME"])
@pytest.mark.parametrize(
    ("command", "variables"), [way[1:] for way in WAYS], ids=[way[0] for way in WAYS]
)
def test_a_deployed_endpoint_serves_no_live_calls(
    command: list[str], variables: dict[str, str], name: str, tmp_path: Path
) -> None:
    (tmp_path / "test_input.json").write_text(JOB)
    ended = start(command, tmp_path, {**variables, name: "shop"})
    assert ended.returncode, ended.stderr
    assert f"{name}='shop'" in ended.stderr
    assert f"unset {name}" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert MARK not in ended.stdout


def test_an_empty_name_is_not_set_and_spaces_are(tmp_path: Path) -> None:
    one_job: list[Any] = [*SERVE_QB, "--test_input", JOB]
    empty = start(one_job, tmp_path, {"FLASH_RESOURCE_NAME": "", "RUNPOD_RESOURCE_NAME": ""})
    assert empty.returncode == 0, empty.stderr
    assert MARK in empty.stdout
    spaces = start(one_job, tmp_path, {"FLASH_RESOURCE_NAME": " "})
    assert spaces.returncode == 2
    assert "FLASH_RESOURCE_NAME=' '" in spaces.stderr
