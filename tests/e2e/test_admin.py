"""The admin listener of a real server, and of a program with a `Pool`."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from flashpool.frontends.admin import serve
from flashpool.pool import Pool

from .server import FLASHPOOL, Server, serving

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


def test_a_session_is_signed_in_with_the_token_and_known_by_its_cookie(
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


def test_it_is_off_when_it_is_told_so(tmp_path: Path) -> None:
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


def test_it_ends_with_the_pool_or_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
