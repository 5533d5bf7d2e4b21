"""The admin listener of a real server, and of a program with a `Pool`."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from flashpool.frontends.admin import serve
from flashpool.pool import Pool

from .server import FLASHPOOL, Server, request, serving

#: The server outlives the tests, so that kept connections may be closed and opened again.
pytestmark = pytest.mark.shared_pool
TOKEN = "the-operator-s"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("admin")
    token = folder / "token"
    token.write_text(TOKEN)
    variables = {
        "FLASHPOOL_ADMIN_TOKEN_FILE": str(token),
        "FLASHPOOL_STATE_DIR": str(folder / "state"),
        "FLASHPOOL_SLOTS": "2",
    }
    with serving(folder, **variables) as one:
        yield one


@pytest.fixture
def admin(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.admin, trust_env=False, timeout=30) as client:
        yield client


def test_signing_in_with_the_token_opens_a_session_with_a_cookie(
    admin: httpx.Client,
) -> None:
    assert admin.post("/session", json={"token": "guess"}).status_code == 401
    assert admin.post("/session", content=b"{").status_code == 401
    assert admin.post("/session", content=b"x" * 100_000).status_code in (401, 413)
    answer = admin.post("/session", json={"token": TOKEN})
    assert answer.status_code == 204
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert "SameSite=Strict" in answer.headers["set-cookie"]
    assert TOKEN not in answer.headers["set-cookie"]
    origin = {"Origin": str(admin.base_url).rstrip("/")}
    assert admin.delete("/session", headers=origin).status_code == 204


def test_the_listener_can_be_turned_off(tmp_path: Path) -> None:
    variables = {"FLASHPOOL_ADMIN_PORT": "none", "FLASHPOOL_STATE_DIR": str(tmp_path / "state")}
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("FLASHPOOL", "RUNPOD"))}
    process = subprocess.Popen(
        [FLASHPOOL, "serve", "lb", "--port", "0"],
        env=environ | variables,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        assert any(line == "stats: off\n" for line in lines)
    finally:
        process.terminate()
        process.communicate(timeout=40)
    assert process.returncode == 0


def test_servers_of_tests_leave_nothing_in_the_home_directory(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with serving(tmp_path, HOME=str(home)) as server:
        assert server.execute("def f(): return 1")["json_result"] == 1
        assert "The admin token is in " in server.log()
    assert list(home.rglob("*")) == []


def test_an_open_listener_needs_a_token(tmp_path: Path) -> None:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("FLASHPOOL", "RUNPOD"))}
    open_one = {"FLASHPOOL_ADMIN_HOST": "0.0.0.0", "FLASHPOOL_PORT": "0"}
    refused = subprocess.run(
        [FLASHPOOL, "serve", "lb"],
        env=environ | open_one,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode == 2
    assert "FLASHPOOL_ADMIN_TOKEN" in refused.stderr
    with serving(tmp_path, **open_one, FLASHPOOL_ADMIN_TOKEN=TOKEN) as server:
        assert httpx.get(f"{server.admin}/stats", trust_env=False).status_code == 401
        assert httpx.get(f"{server.admin}/stats", headers=BEARER, trust_env=False).is_success


PROGRAM = """
from flashpool.frontends.admin import serve
from flashpool.pool import Pool
import json, urllib.request
with Pool(1) as pool, serve(pool, port=0) as admin:
    assert pool.submit(abs, -1).result() == 1
    print(urllib.request.urlopen(admin.url + "/stats").read().decode())
"""


def test_a_program_shows_its_pool(tmp_path: Path) -> None:
    environ = os.environ | {"FLASHPOOL_STATE_DIR": str(tmp_path), "no_proxy": "*"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout)["outcomes"] == {"ok": 1}
    assert [path.name for path in (tmp_path / "admin").iterdir()] == ["token"]


def test_the_listener_ends_with_the_pool_or_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHPOOL_STATE_DIR", str(tmp_path))
    with Pool(1) as pool:
        first, second = serve(pool, port=0), serve(pool, port=0)
        assert httpx.get(f"{first.url}/stats", trust_env=False).is_success
        first.close()
        first.close()
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{first.url}/stats", trust_env=False)
        assert httpx.get(f"{second.url}/stats", trust_env=False).is_success
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{second.url}/stats", trust_env=False)
    second.close()


def outcomes(text: str) -> dict[str, float]:
    return {
        sample.labels["outcome"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "flashpool_calls_total"
    }


def test_stats_and_metrics_count_all_calls(server: Server, admin: httpx.Client) -> None:
    before = server.stats()
    for number in range(5):
        assert server.execute(f"def f(): return {number}")["success"]
    crash = server.execute("import os\ndef f():\n    print('bye', flush=True)\n    os._exit(3)")
    assert crash["error_type"] == "WorkerCrashed"
    assert not server.execute("def f(): return 1 / 0")["success"]
    # Only the operator, with the token, may read the call's output.
    stats, full = server.stats(), admin.get("/stats", headers=BEARER).json()
    assert stats["calls"] - before["calls"] == 7
    assert outcomes(admin.get("/metrics").text) == stats["outcomes"]
    assert stats["latency"]["run"]["count"] == sum(stats["outcomes"].values())
    causes = [one["cause"] for one in stats["recent_failures"]]
    assert causes[-2:] == ["WorkerCrashed", "UserException"]
    assert stats["recent_failures"][-2]["last_lines"] == ""
    assert full["recent_failures"][-2]["last_lines"] == "bye\n"
    assert full["recent_failures"][-2]["receipt"]["exit"] == "exit 3"
    assert sum(minute["calls"] for minute in stats["last_hour"]) == stats["calls"]
    assert (stats["schema_version"], stats["server"]["mode"]) == (1, "live")
    names = admin.get("/stats/schema").json()["$defs"]["StatsDocument"]["properties"]
    assert set(stats) == set(names)


def test_a_drain_can_be_cancelled(server: Server, admin: httpx.Client) -> None:
    assert admin.get("/livez").status_code == 200
    assert admin.get("/readyz").json() == {"ready": True, "reasons": []}
    assert admin.post("/drain").status_code == 401
    assert admin.post("/drain", headers=BEARER).json()["draining"] is True
    try:
        probe = admin.get("/readyz")
        assert probe.status_code == 503
        assert [one["cause"] for one in probe.json()["reasons"]] == ["draining"]
        assert refused(server).status_code == 503
        assert health(server).returncode == 1
    finally:
        assert admin.delete("/drain", headers=BEARER).json()["draining"] is False
    assert admin.get("/readyz").status_code == 200
    assert server.execute("def f(): return 1")["json_result"] == 1
    assert health(server).returncode == 0
    assert "Admin: POST /drain answered with 200; asked by 127.0.0.1" in server.log()


def test_a_server_of_calls_has_nothing_to_reload(admin: httpx.Client) -> None:
    assert admin.post("/reload").status_code == 401
    answer = admin.post("/reload", headers=BEARER)
    assert answer.status_code == 404
    assert "no deployed app" in answer.json()["detail"]


def health(server: Server) -> subprocess.CompletedProcess[str]:
    command = [FLASHPOOL, "health", "--admin", server.admin]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_page_loads_nothing_from_elsewhere(admin: httpx.Client) -> None:
    page = admin.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    used = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
    assert {"page.css", "page.js"} <= set(used)
    assert not [one for one in used if "://" in one]
    for path in set(used) - {"data:,"}:
        assert admin.get(f"/{path}").is_success, path


def test_events_are_pushed_and_a_slow_reader_delays_no_other(
    server: Server, admin: httpx.Client
) -> None:
    with admin.stream("GET", "/events") as asleep, admin.stream("GET", "/events") as stream:
        assert asleep.is_success
        lines = stream.iter_lines()
        data = [line for line, _ in zip(lines, range(6), strict=False) if line.startswith("data: ")]
        assert len(data) == 2
        assert json.loads(data[1].removeprefix("data: "))["slots"]["total"] == 2
        assert admin.get("/livez").is_success


def refused(server: Server) -> httpx.Response:
    """Return the answer to a call on a new connection, which a draining server closes."""
    body = request("def f(): return 1")
    return httpx.post(f"{server.url}/execute", json=body, trust_env=False, timeout=60)
