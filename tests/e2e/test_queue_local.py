"""The images' entry points without a cloud: all modes, and all flags of the SDK."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import pytest
from e2e.queue_client import _free_port
from e2e.queue_jobs import NOTHING, STAYS
from e2e.server import FLASHPOOL, alive, request, until

DOCKER: Final = Path(__file__).parents[2] / "docker"
HANDLER: Final = [sys.executable, "handler.py"]
ADD: Final = "def f(a, b):\n    print('adding')\n    return a + b"


def environ(**variables: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLASH", "RUNPOD"))}
    return {**kept, "FLASHPOOL_ADMIN_PORT": "0", **variables}


def done(
    command: list[Any], *arguments: str, **variables: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*command, *arguments],
        cwd=DOCKER,
        env=environ(**variables),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@contextlib.contextmanager
def running(command: list[Any], log: Path, **variables: str) -> "Iterator[subprocess.Popen[bytes]]":
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=DOCKER, env=environ(**variables), stdout=file, stderr=file
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("command", [HANDLER, [FLASHPOOL, "serve", "qb"]], ids=["image", "cli"])
def test_one_job_from_the_command_line(command: list[Any]) -> None:
    job = json.dumps({"input": request(ADD, 40, 2)})
    ended = done(command, "--test_input", job)
    assert ended.returncode == 0, ended.stderr
    assert "'json_result': 42" in ended.stdout
    assert "adding" in ended.stdout


@pytest.mark.parametrize(
    ("job", "text"),
    [
        ({"input": request("def f(): raise ValueError('no luck')")}, "no luck"),
        ({"input": request("def f():\n    import os\n    os._exit(7)")}, "exit code 7"),
        ({"input": {"function_name": "f"}}, "function_code"),
        ({"input": None}, "no input"),
    ],
)
def test_a_job_from_the_command_line_that_fails(job: dict[str, Any], text: str) -> None:
    ended = done(HANDLER, "--test_input", json.dumps(job))
    assert ended.returncode == 1
    assert text in ended.stdout


@pytest.mark.slow
def test_the_job_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "test_input.json").write_text(json.dumps({"input": request(NOTHING, 7)}))
    ended = subprocess.run(
        [sys.executable, DOCKER / "handler.py", "--rp_log_level", "ERROR"],
        cwd=tmp_path,
        env=environ(),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Job result" not in ended.stdout


def test_without_a_queue_the_error_says_what_to_do() -> None:
    ended = done([FLASHPOOL, "serve", "qb"])
    assert ended.returncode == 2
    for hint in ("RUNPOD_WEBHOOK_GET_JOB", "--rp_serve_api", "--test_input", "test_input.json"):
        assert hint in ended.stderr
    assert ended.stdout == "", "the SDK's own words have no hint"


def test_help_lists_the_sdks_flags() -> None:
    ended = done([FLASHPOOL], "serve", "qb", "--help")
    for flag in ("--test_input", "--rp_serve_api", "--rp_api_port", "RUNPOD_WEBHOOK_GET_JOB"):
        assert flag in ended.stdout


@contextlib.contextmanager
def api(log: Path, **variables: str) -> "Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]":
    port = _free_port()
    command = [FLASHPOOL, "serve", "qb", "--rp_serve_api", "--rp_api_port", str(port)]
    command += ["--rp_api_concurrency", "3", "--rp_log_level", "WARN"]
    with (
        running(command, log, **variables) as process,
        httpx.Client(base_url=f"http://localhost:{port}", trust_env=False, timeout=60) as http,
    ):
        until(lambda: http.get("/openapi.json").status_code == 200, 45)
        yield http, process


def test_the_sdks_api_as_a_queue_on_loopback(tmp_path: Path) -> None:
    with api(tmp_path / "log", FLASHPOOL_SLOTS="2") as (http, process):
        for page in {"Host": "evil.example"}, {"Origin": "https://evil.example"}:
            refused = http.post("/runsync", json={"input": request(ADD, 1, 2)}, headers=page)
            assert refused.status_code == 403

        def ask(code: str, *args: Any) -> dict[str, Any]:
            return http.post("/runsync", json={"input": request(code, *args)}).json()  # type: ignore[no-any-return]

        answer = ask(ADD, 40, 2)
        assert answer["status"] == "COMPLETED"
        assert answer["output"]["json_result"] == 42
        assert answer["output"]["stdout"] == "adding\n"
        failed = ask("def f(): raise ValueError('no luck')")
        assert failed["status"] == "FAILED"
        assert "no luck" in failed["error"]
        assert ask("def f():\n    for n in range(3): yield n")["output"]["json_result"] == [0, 1, 2]
        with ThreadPoolExecutor(8) as threads:
            found = threads.map(lambda n: ask(NOTHING, n)["output"]["json_result"], range(20))
            assert list(found) == list(range(20))
        job = http.post("/run", json={"input": request(ADD, 1, 2)}).json()["id"]
        assert http.post(f"/status/{job}").json()["output"]["json_result"] == 3
        tree = psutil.Process(process.pid).children(recursive=True)
        assert len(tree) >= 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0, (tmp_path / "log").read_text()
    assert not alive(tree)
    check_log(tmp_path / "log")


def check_log(log: Path) -> None:
    """Check the start-up log of a server under uvicorn: each line once, with the stats address."""
    text = log.read_text()
    for line in ("Started server process", "Shutting down", "Finished server process"):
        assert text.count(line) == 1, text
    assert re.search(
        r"Live (calls|jobs), .*; stats: http://127\.0\.0\.1:\d+/stats$", text, re.MULTILINE
    )


def test_the_sdks_api_exits_within_the_drain_and_answers(tmp_path: Path) -> None:
    limits = {"FLASHPOOL_DRAIN_S": "1", "FLASHPOOL_GRACE_S": "0.3"}
    with api(tmp_path / "log", **limits) as (http, process), ThreadPoolExecutor(1) as threads:
        job = {"input": request(STAYS, str(tmp_path / "begun"), 60)}
        asked = threads.submit(http.post, "/runsync", json=job)
        until((tmp_path / "begun").exists)
        tree = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        answer = asked.result(25).json()
        assert answer["status"] == "FAILED"
        assert "FLASHPOOL_DRAIN_S" in answer["error"]
        assert process.wait(25) == 0
    until(lambda: not alive(tree))


@pytest.mark.slow
def test_a_second_signal_hurries_the_sdks_api(tmp_path: Path) -> None:
    with api(tmp_path / "log") as (http, process), ThreadPoolExecutor(1) as threads:
        job = {"input": request(STAYS, str(tmp_path / "begun"), 60)}
        asked = threads.submit(http.post, "/runsync", json=job)
        until((tmp_path / "begun").exists)
        process.send_signal(signal.SIGTERM)
        until(lambda: "Shutting down" in (tmp_path / "log").read_text())
        process.send_signal(signal.SIGTERM)
        assert "a second signal" in asked.result(25).json()["error"]
        assert process.wait(25) == 0


@pytest.mark.parametrize(
    ("flags", "variables", "text"),
    [
        (["--test_input", "{nope"], {}, "--test_input"),
        (["--test_input", "5"], {}, "JSON object"),
        (["--rp_serve_api", "--rp_api_port", "99999"], {}, "99999"),
        ([], {"RUNPOD_REALTIME_PORT": "soon"}, "RUNPOD_REALTIME_PORT='soon'"),
    ],
)
@pytest.mark.slow
def test_invalid_flags_are_refused(flags: list[str], variables: dict[str, str], text: str) -> None:
    ended = done(HANDLER, *flags, **variables)
    assert ended.returncode == 2
    assert text in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("flags", "variables"),
    [
        (["--rp_serve_api", "--rp_api_host", "0.0.0.0"], {}),
        # The SDK serves that one on every address.
        ([], {"RUNPOD_REALTIME_PORT": "8123"}),
    ],
    ids=["api", "realtime"],
)
@pytest.mark.slow
def test_the_sdks_api_is_not_opened_to_the_network(
    flags: list[str], variables: dict[str, str]
) -> None:
    ended = done(HANDLER, *flags, **variables)
    assert ended.returncode == 2
    assert "FLASHPOOL_ALLOW_OPEN" in ended.stderr


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"FLASH_ENDPOINT_TYPE": "lb", "FLASH_RESOURCE_NAME": "x"}, "lb_handler:app"),
        ({"FLASHPOOL_JOB_TIMEOUT_S": "soon"}, "FLASHPOOL_JOB_TIMEOUT_S='soon'"),
        ({"FLASHPOOL_ADMIN_HOST": "0.0.0.0"}, "FLASHPOOL_ADMIN_HOST"),
    ],
)
@pytest.mark.slow
def test_endpoints_that_cannot_be_served_are_refused(variables: dict[str, str], text: str) -> None:
    ended = done(HANDLER, **variables)
    assert ended.returncode == 2
    assert text in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_a_worker_whose_interpreter_does_not_start_ends(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such thing >&2\nexit 3\n")
    broken.chmod(0o755)
    queue = {"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1:9/v2/e/job-take/$ID?gpu=none"}
    ended = done(HANDLER, FLASHPOOL_BASE_PYTHON=str(broken), **queue)
    assert ended.returncode == 2
    assert "did not start" in ended.stderr
    assert "Traceback" not in ended.stderr


UVICORN: Final = [sys.executable, "-m", "uvicorn", "lb_handler:app"]


#: Two calls of one instance that end only when they overlap.
MEET: Final = {
    "execution_type": "class",
    "class_name": "Place",
    "class_code": """class Place:
    def __init__(self):
        self.there = 0
    async def meet(self):
        import asyncio
        self.there += 1
        while self.there < 2:
            await asyncio.sleep(0.01)
        return "met"
""",
    "method_name": "meet",
    "instance_id": "place",
    "timeout_s": 20,
    "serialization_format": "json",
}


def test_the_load_balanced_images_application(tmp_path: Path) -> None:
    port = _free_port()
    command = [*UVICORN, "--port", str(port), "--timeout-keep-alive", "600"]
    with (
        running(command, tmp_path / "log") as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as http,
    ):
        until(lambda: http.get("/ping").status_code == 200, 45)
        assert http.post("/execute", json=request(ADD, 40, 2)).json()["json_result"] == 42
        with ThreadPoolExecutor(2) as callers:
            replies = [callers.submit(http.post, "/execute", json=MEET) for _ in range(2)]
            assert [reply.result().json()["json_result"] for reply in replies] == ["met"] * 2
        tree = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        process.wait(40)
    until(lambda: not alive(tree))
    check_log(tmp_path / "log")


def test_the_application_ends_its_calls_within_the_drain(tmp_path: Path) -> None:
    """uvicorn alone waits for them without a limit."""
    port = _free_port()
    begun = tmp_path / "begun"
    with (
        running(
            [*UVICORN, "--port", str(port)],
            tmp_path / "log",
            FLASHPOOL_DRAIN_S="0.5",
            FLASHPOOL_GRACE_S="0.3",
        ) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as http,
        ThreadPoolExecutor(1) as callers,
    ):
        until(lambda: http.get("/ping").status_code == 200, 45)
        staying = callers.submit(http.post, "/execute", json=request(STAYS, str(begun), 60))
        until(begun.exists)
        tree = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        answer = staying.result(10).json()
        process.wait(25)
    assert answer["error_type"] == "Cancelled"
    assert "FLASHPOOL_DRAIN_S" in answer["error"]
    assert not alive(tree)
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("arguments", "variables", "text"),
    [
        (["--host", "0.0.0.0"], {}, "FLASHPOOL_TOKEN"),
        # As uvicorn reads its options: the last one counts, and each may be a variable.
        (["--host", "127.0.0.1", "--host=0.0.0.0"], {}, "FLASHPOOL_TOKEN"),
        ([], {"UVICORN_HOST": "0.0.0.0"}, "FLASHPOOL_TOKEN"),
        ([], {"FLASH_ENDPOINT_TYPE": "lb"}, "FLASH_RESOURCE_NAME"),
    ],
)
@pytest.mark.slow
def test_invalid_settings_are_refused_by_the_application(
    arguments: list[str], variables: dict[str, str], text: str
) -> None:
    ended = done(UVICORN, *arguments, "--port", "0", **variables)
    assert ended.returncode != 0
    assert text in ended.stderr
    assert "Traceback" not in ended.stderr
