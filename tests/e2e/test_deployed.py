"""Where a resource is named, nothing runs code that jobs bring: every way to take jobs, really started.

What is served in place of it: test_deployed_jobs.py, and test_endpoint.py for load-balanced ones.

A deployed endpoint is open to its users, who must not be able to send it code.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from e2e.queue_client import _free_port, local_api
from e2e.server import FLASHPOOL, request

DOCKER: Final = Path(__file__).parents[2] / "docker"
MARK: Final = "the job ran"
JOB: Final = json.dumps({"input": request(f"def f():\n    return {MARK!r}")})
#: Addresses of a platform that is never contacted.
QUEUE: Final = {"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:9/v2/e/job-take/$ID?gpu=none"}

HANDLER: Final = [sys.executable, str(DOCKER / "handler.py")]
SERVE_QB: Final = [str(FLASHPOOL), "serve", "qb"]

#: Name, command, further variables, and the error when the resource has no artifact.
WAYS: Final[list[tuple[str, list[str], dict[str, str], str]]] = [
    ("qb", SERVE_QB, QUEUE, "FLASHPOOL_APP_GIVE_UP_S"),
    ("qb-image", HANDLER, QUEUE, "FLASHPOOL_APP_GIVE_UP_S"),
    ("qb-one-job", [*SERVE_QB, "--test_input", JOB], {}, "AppNotLoaded"),
    ("qb-job-of-a-file", SERVE_QB, {}, "AppNotLoaded"),
]

#: The cases that run: each starts a server, and the others differ little.
SLOW: Final = ("qb", "qb-job-of-a-file")


def start(
    command: list[str], folder: Path, variables: dict[str, str]
) -> "subprocess.CompletedProcess[str]":
    """Run the command until it exits; a refused command exits by itself."""
    port = str(_free_port())
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLASH", "RUNPOD"))}
    given = {"FLASHPOOL_ADMIN_PORT": "0", "PYTHONPATH": str(DOCKER), **variables}
    return subprocess.run(
        [part.replace("{port}", port) for part in command],
        cwd=folder,
        env={**kept, **{k: v.replace("{port}", port) for k, v in given.items()}},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize(
    ("command", "variables", "words"),
    [
        pytest.param(*way[1:], id=way[0], marks=(way[0] in SLOW and [pytest.mark.slow]) or [])
        for way in WAYS
    ],
)
def test_a_deployed_queue_runs_no_code_of_jobs(
    command: list[str], variables: dict[str, str], words: str, tmp_path: Path
) -> None:
    (tmp_path / "test_input.json").write_text(JOB)
    ended = start(command, tmp_path, {**variables, **_nowhere(tmp_path)})
    assert ended.returncode == 1, ended.stderr
    assert words in ended.stdout + ended.stderr
    assert MARK not in ended.stdout


def test_the_sdks_api_of_a_deployed_queue_runs_none_either(tmp_path: Path) -> None:
    variables = {"FLASHPOOL_ADMIN_PORT": "0", **_nowhere(tmp_path)}
    with local_api(SERVE_QB, tmp_path, variables) as url:
        answer = httpx.post(f"{url}/runsync", json=json.loads(JOB), timeout=60, trust_env=False)
    assert answer.json()["status"] == "FAILED"
    assert "AppNotLoaded" in answer.json()["error"]


def _nowhere(folder: Path) -> dict[str, str]:
    return {
        "FLASH_RESOURCE_NAME": "shop",
        "FLASH_BUILD_ARTIFACT_PATH": str(folder / "none.tar.gz"),
        "FLASHPOOL_APP_DIR": str(folder / "app"),
        "FLASHPOOL_ARTIFACT_WAIT_S": "0.1",
        "FLASHPOOL_APP_GIVE_UP_S": "0.1",
    }


def test_an_empty_resource_name_is_ignored_and_a_blank_one_is_not(tmp_path: Path) -> None:
    one_job: list[Any] = [*SERVE_QB, "--test_input", JOB]
    empty = start(one_job, tmp_path, {"FLASH_RESOURCE_NAME": "", "RUNPOD_RESOURCE_NAME": ""})
    assert empty.returncode == 0, empty.stderr
    assert MARK in empty.stdout
    spaces = start(one_job, tmp_path, {**_nowhere(tmp_path), "FLASH_RESOURCE_NAME": " "})
    assert spaces.returncode == 1
    assert MARK not in spaces.stdout
