"""Watching calls of a real server over HTTP and with the commands."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from .server import FLASHPOOL, Server, request, serving, until

pytestmark = [pytest.mark.shared_pool, pytest.mark.timeout(120)]

pytestmark = [pytest.mark.shared_pool, pytest.mark.timeout(120)]

TOKEN = "the-operator-s"
KEY = "of-the-volume"
#: Runs until a file exists.
WAITS = """
def f(path):
    import os, time
    print("begun", flush=True)
    while not os.path.exists(path):
        time.sleep(0.05)
    print("over")
    return 7
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("watched")
    variables = {
        "FLASHPOOL_ADMIN_TOKEN": TOKEN,
        "FLASHPOOL_STATE_DIR": str(folder / "state"),
        "FLASHPOOL_LOCAL_DIR": str(folder / "local"),
        "FLASHPOOL_SLOTS": "2",
        "FLASHPOOL_LOG_FORMAT": "json",
        "FLASHPOOL_LOG_OUTPUT_KB_S": "1",
        "FLASHPOOL_ACCESS_LOG": "yes",
        "FLASHPOOL_KEEP_FAILED_MB": "1",
        "FLASHPOOL_VOLUME_KEY": KEY,
    }
    with serving(folder, **variables) as one:
        yield one


@pytest.fixture
def admin(server: Server) -> Iterator[httpx.Client]:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=server.admin, trust_env=False, timeout=30, headers=bearer) as client:
        yield client


class Sent:
    """A pending request, in a thread of its own."""

    def __init__(self, server: Server, code: str, *args: Any, name: str, **fields: Any) -> None:
        self.answer: httpx.Response | None = None
        self._thread = threading.Thread(target=self._send, args=(server, code, args, name, fields))
        self._thread.start()

    def _send(self, server: Server, code: str, args: Any, name: str, fields: Any) -> None:
        with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
            self.answer = client.post(
                "/execute", json=request(code, *args, **fields), headers={"X-Request-Id": name}
            )

    def wait(self) -> httpx.Response:
        self._thread.join(60)
        assert self.answer is not None
        return self.answer


def flashpool(
    server: Server, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("FLASHPOOL", "RUNPOD"))}
    environ |= {"FLASHPOOL_ADMIN_TOKEN": TOKEN, "FLASHPOOL_ADMIN_URL": server.admin}
    return subprocess.run(
        [FLASHPOOL, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env=environ | variables,
    )


def lines(server: Server) -> list[dict[str, Any]]:
    """The JSON lines of the log."""
    return [json.loads(line) for line in server.log().splitlines() if line.startswith("{")]


def running(admin: httpx.Client, name: str) -> dict[str, Any]:
    """Wait until the call with that id runs, and return it."""

    def look() -> Any:
        answer = admin.get(f"/calls/{name}")
        return answer.status_code == 200 and answer.json()["state"] == "running" and answer.json()

    found: dict[str, Any] = until(look)
    return found


def test_the_id_in_each_answer_works_for_look_ups(server: Server, admin: httpx.Client) -> None:
    made = server.http.post("/execute", json=request("def f(): return 1"))
    given = server.http.post(
        "/execute", json=request("def f(): return 2"), headers={"X-Request-Id": "mine:1"}
    )
    odd = server.http.post(
        "/execute", json=request("def f(): return 3"), headers={"X-Request-Id": "no good"}
    )
    refused = server.http.post("/execute", content=b"{", headers={"X-Request-Id": "mine:2"})
    assert given.headers["x-request-id"] == "mine:1"
    assert made.headers["x-request-id"] == made.json()["receipt"]["call_id"]
    assert odd.headers["x-request-id"] == odd.json()["receipt"]["call_id"]
    assert (refused.status_code, refused.headers["x-request-id"]) == (422, "mine:2")
    by_name = admin.get(f"/calls/{given.json()['receipt']['call_id']}").json()
    assert by_name == admin.get("/calls/mine:1").json()
    assert by_name == admin.get(f"/calls/{by_name['number']}").json()
    assert (by_name["state"], by_name["outcome"], by_name["label"]) == ("ended", "ok", "f")
    assert admin.get("/calls/nobody-s").status_code == 404


def test_a_running_call_shows_its_stacks_and_continues(
    server: Server, admin: httpx.Client, tmp_path: Path
) -> None:
    sent = Sent(server, WAITS, str(tmp_path / "go"), name="stacked")
    call = running(admin, "stacked")
    assert call["receipt"]["seconds"]["run"] > 0
    found = admin.get("/calls/stacked/stack").json()
    assert (found["problem"], found["pid"]) == ("", call["pid"])
    assert "in f" in found["text"]
    assert "_child" not in found["text"]
    shown = flashpool(server, "stack", "stacked")
    assert shown.returncode == 0
    assert "in f" in shown.stdout
    (tmp_path / "go").touch()
    answer = sent.wait().json()
    assert answer["success"]
    assert answer["stdout"] == "begun\nover\n"
    assert admin.get("/calls/stacked/stack").status_code == 409


def test_logs_are_streamed_from_the_start_and_then_live(
    server: Server, admin: httpx.Client, tmp_path: Path
) -> None:
    sent = Sent(server, WAITS, str(tmp_path / "go"), name="told")
    running(admin, "told")
    with admin.stream("GET", "/calls/told/logs") as stream:
        events = stream.iter_lines()
        assert 'data: {"text": "begun\\n"}' in next(one for one in events if "begun" in one)
        (tmp_path / "go").touch()
        assert 'data: {"text": "over\\n"}' in next(one for one in events if "over" in one)
        assert "event: end" in list(events)
    assert sent.wait().json()["success"]
    assert flashpool(server, "logs", "told", "-f").stdout == "begun\nover\n"


def test_a_call_is_cancelled_and_that_is_logged(server: Server, admin: httpx.Client) -> None:
    sent = Sent(server, WAITS, "/nonexistent/go", name="long")
    running(admin, "long")
    assert "long" in flashpool(server, "ps").stdout
    assert flashpool(server, "top").stdout.count("long") <= 1
    done = flashpool(server, "cancel", "long")
    assert done.returncode == 0, done.stderr
    answer = sent.wait().json()
    assert (answer["success"], answer["error_type"]) == (False, "Cancelled")
    assert "DELETE /calls/long answered with 200" in server.log()
    again = flashpool(server, "cancel", "long")
    assert again.returncode == 1
    assert "has ended" in again.stderr


def test_the_log_names_the_call_on_each_of_its_lines(server: Server) -> None:
    code = "def f():\n    print('heard')\n    print('x' * 9000)\n    raise ValueError('odd')"
    answer = server.http.post(
        "/execute", json=request(code), headers={"X-Request-Id": "logged-1"}
    ).json()
    name = answer["receipt"]["call_id"]
    until(lambda: any(one["logger"] == "flashpool.access" for one in of(server, "logged-1")))
    found = of(server, "logged-1")
    ends = [one for one in found if one["logger"] == "flashpool.frontends.logs"]
    assert [(one["level"], one["call"]) for one in ends] == [("INFO", name)]
    assert "ValueError: raised by the call's code; its answer has" in ends[0]["message"]
    output = [one["message"] for one in found if one["logger"] == "flashpool.output"]
    assert output[0] == "f| heard"
    assert "9000 bytes of its output are not shown" in output[1]
    assert "POST /execute 200" in "".join(one["message"] for one in found)
    assert {one["pod"] for one in found} != {None}


def of(server: Server, request_id: str) -> list[dict[str, Any]]:
    return [one for one in lines(server) if one["request_id"] == request_id]


@pytest.mark.slow
def test_a_request_that_failed_is_kept_and_fails_the_same_way_again(
    server: Server, tmp_path: Path
) -> None:
    code = "def f(n):\n    import os\n    raise ValueError(n, 'HUSH' in os.environ)"
    body = request(code, 3, env={"HUSH": "secret"})
    server.http.post("/execute", json=body, headers={"X-Request-Id": "kept-1"})
    until(lambda: [one for one in of(server, "kept-1") if "Kept its request" in one["message"]])
    folder = server._log.parent / "state"
    # Other tests' calls failed on this server, too.
    (file,) = (one for one in (folder / "failed").iterdir() if b"kept-1" in one.read_bytes())
    assert b"secret" not in file.read_bytes()
    variables = {"FLASHPOOL_STATE_DIR": str(folder), "FLASHPOOL_VOLUME_KEY": KEY}
    listed = flashpool(server, "replay", **variables)
    assert "kept-1" in listed.stdout
    again = flashpool(server, "replay", "kept-1", "--env", "HUSH=told", **variables)
    assert again.returncode == 1
    assert "ValueError: (3, True)" in again.stderr
    assert "failed the same way" in again.stderr
    bare = flashpool(server, "replay", "kept-1", "--pdb", **variables)
    assert "values are not kept: HUSH" in bare.stderr
    assert "ValueError: (3, False)" in bare.stderr
    assert "(Pdb)" in bare.stdout
    strange = flashpool(server, "replay", "kept-1", FLASHPOOL_STATE_DIR=str(folder))
    assert strange.returncode == 2
    file.write_bytes(file.read_bytes().replace(b"ValueError", b"RaiseError"))
    forged = flashpool(server, "replay", file.name.removesuffix(".request"), **variables)
    assert (forged.returncode, "not signed" in forged.stderr) == (2, True)


def test_calls_are_not_shown_without_the_token(server: Server) -> None:
    for method, path in (
        ("GET", "/calls"),
        ("GET", "/calls/1/logs"),
        ("GET", "/calls/1/stack"),
        ("DELETE", "/calls/1"),
        ("DELETE", "/instances/a"),
        ("POST", "/envs"),
    ):
        answer = httpx.request(method, server.admin + path, trust_env=False)
        assert answer.status_code == 401, (method, path)


def test_an_instance_is_closed_by_its_name(server: Server, admin: httpx.Client) -> None:
    counter = {
        "execution_type": "class",
        "class_name": "C",
        "class_code": "class C:\n    def go(self):\n        return 1\n",
        "method_name": "go",
        "instance_id": "of mine/1",
        "serialization_format": "json",
    }
    assert server.http.post("/execute", json=counter).json()["success"]
    assert admin.delete("/instances/of%20mine%2F1").status_code == 200
    until(lambda: not server.stats()["instances"])
    assert admin.delete("/instances/of%20mine%2F1").status_code == 404


def test_environments_are_listed_and_explained(server: Server, admin: httpx.Client) -> None:
    explained = admin.post("/envs", json={"dependencies": ["pip"], "dry_run": True}).json()
    assert {"digest", "mode", "decisions", "present"} <= explained.keys()
    wrong = admin.post("/envs", json={"dependencies": ["--index-url x"]})
    assert (wrong.status_code, wrong.json()["error_type"]) == (422, "InvalidRequest")
    assert admin.post("/envs", content=b"{").status_code == 422
    listed = admin.get("/envs").json()
    assert listed["builds"] == []
    assert admin.delete("/builds/none").status_code == 404


def test_commands_say_what_is_wrong(server: Server) -> None:
    unknown = flashpool(server, "logs", "nobody-s")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "There is no call" in unknown.stderr
    nowhere = flashpool(server, "ps", "--admin", "http://127.0.0.1:9")
    assert nowhere.returncode == 2
    assert json.loads(flashpool(server, "stats", "--json").stdout)["slots"]["total"] == 2
    assert "slots" in flashpool(server, "stats").stdout


def test_a_server_stops_while_a_client_follows_a_call(tmp_path: Path) -> None:
    variables = {
        "FLASHPOOL_ADMIN_TOKEN": TOKEN,
        "FLASHPOOL_STATE_DIR": str(tmp_path / "state"),
        "FLASHPOOL_LOCAL_DIR": str(tmp_path / "local"),
        "FLASHPOOL_DRAIN_S": "0.1",
    }
    with serving(tmp_path, **variables) as one:
        sent = Sent(one, WAITS, "/nonexistent/go", name="long")
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=one.admin, trust_env=False, headers=bearer) as client:
            running(client, "long")
            with client.stream("GET", "/calls/long/logs") as stream:
                lines = stream.iter_lines()
                assert next(lines) == "event: call"
                began = time.monotonic()
                assert one.stop() == 0
                assert "event: end" in list(lines)
                assert time.monotonic() - began < 30
        assert sent.wait().json()["error_type"] == "Cancelled"
