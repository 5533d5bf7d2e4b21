"""Deployed load-balanced endpoints: real artifacts, from the archive to the app's answers."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from e2e.app_servers import AppServer
from e2e.endpoints import SERVE_LB, UVICORN, EndpointWorld, wait_failed
from e2e.server import FLASHPOOL, until

from flashpool.envs import EnvSettings
from flashpool.envs.uv_cli import find_uv
from support.artifacts import PYTHON, file_of, with_files

pytestmark = [pytest.mark.timeout(600), pytest.mark.shared_pool]

#: Code of an app that answers questions about its own process.
ROUTES = b"""
import sys
from runpod_flash import Endpoint
import os
import sched

BORN = os.getpid()
api = Endpoint(name="shop", cpu="cpu3c-1-2", workers=(0, 1))


@api.get("/items/{item_id}")
def read_item(item_id: int, q: str = "None"):
    import os, sys, importlib
    return {"item": item_id, "q": eval(q)}


@api.post("/train")
async def train(steps: int = 1):
    return {"steps": steps}


@api.get("/slow/{rest:path}")
async def slow(rest: str):
    return {"rest": rest}
"""
DIST_INFO = b"Metadata-Version: 2.1\nName: %s\nVersion: %s\n"
EXECUTE = ("/execute", "//execute", "/%65xecute", "/execute/", "/./execute")


@pytest.fixture
def world(tmp_path: Path, client_python: Path) -> EndpointWorld:
    return EndpointWorld(tmp_path / "world", client_python)


@pytest.fixture
def app(shop_artifact: Path, tmp_path: Path) -> Path:
    return with_files(shop_artifact, tmp_path / "app.tar.gz", {"routes.py": ROUTES})


def ask(server: AppServer, expression: str) -> Any:
    return server.http.get("/items/1", params={"q": expression}).json()["q"]


def log_lines(server: AppServer, text: str) -> list[str]:
    return [line for line in server.log().splitlines() if text in line]


def test_an_endpoint_serves_its_artifact(
    world: EndpointWorld, shop_artifact: Path, tmp_path: Path
) -> None:
    # A module of the standard library's name, a package of the base's name, variables of its own.
    built = with_files(
        shop_artifact,
        tmp_path / "built.tar.gz",
        {
            "routes.py": ROUTES,
            "sched.py": b"WHOSE = 'the app'\n",
            "tblib/__init__.py": b"WHOSE = 'the app'\n",
            "tblib-9.0.dist-info/METADATA": DIST_INFO % (b"tblib", b"9.0"),
            ".env": b"FROM_DOTENV=the app\n",
        },
    )
    (world.folder / ".env").write_text("STRAY=a stranger\n")
    archive = tmp_path / "late.tar.gz"
    with world.endpoint(
        archive,
        FLASHPOOL_ARTIFACT_WAIT_S="60",
        RUNPOD_POD_ID="pod",
        FLASHPOOL_HOST="127.0.0.1",
        FLASHPOOL_TOKEN="secret-of-the-server",
        RUNPOD_AI_API_KEY="key-of-the-platform",
        RUNPOD_WEBHOOK_GET_JOB="http://127.0.0.1:9/",
        RUNPOD_API_KEY="key-of-the-user",
        FLASH_APP="demo",
        OF_THE_USER="declared",
    ) as server:
        http = server.http
        assert http.get("/ping").status_code == 204
        assert http.head("/ping").status_code == 204
        assert http.get("/items/1").status_code == 503
        until(lambda: log_lines(server, "waiting for up to"))
        shutil.copy(built, archive.with_suffix(".part"))
        archive.with_suffix(".part").rename(archive)
        server.wait_ready()
        assert http.get("/items/7").json() == {"item": 7, "q": None}
        assert http.post("/train", json={"steps": 3}).json() == {"steps": 3}
        for path in EXECUTE:
            assert http.post(path, json={"input": {}}).status_code == 404
            assert http.get(path).status_code == 404
        assert "/execute" not in http.get("/openapi.json").json()["paths"]
        # Its directory, and the order in which it finds modules.
        folder = os.path.realpath(world.link)
        assert ask(server, "os.getcwd()") == folder
        assert ask(server, "sys.path[0]") == folder
        assert ask(server, "sched.WHOSE") == "the app"
        assert ask(server, "importlib.import_module('tblib').WHOSE") == "the app"
        assert ask(server, "sys.modules['runpod_flash'].__file__").startswith(f"{folder}/")
        assert ask(server, "importlib.util.find_spec('flashpool')") is None
        assert ask(server, "importlib.util.find_spec('msgspec')") is None
        assert ask(server, "[m for m in sys.modules if m.startswith('_flashpool.boot')]") == []
        # Its own variables, and no others.
        found = ask(server, "dict(os.environ)")
        assert found["FLASH_RESOURCE_NAME"] == "shop"
        assert found["RUNPOD_API_KEY"] == "key-of-the-user"
        assert (found["FLASH_APP"], found["OF_THE_USER"]) == ("demo", "declared")
        assert found["FROM_DOTENV"] == "the app"
        assert found["RUNPOD_POD_ID"] == "pod"
        assert "STRAY" not in found
        assert not {"FLASHPOOL_TOKEN", "RUNPOD_AI_API_KEY", "RUNPOD_WEBHOOK_GET_JOB"} & set(found)
    assert server.process.returncode == 0
    assert "Traceback" not in server.log()


def loaded_zygotes(server: AppServer) -> list[Any]:
    return [one for one in server.stats()["zygotes"] if one["profile"] and one["preloaded"]]


@pytest.mark.slow
def test_later_workers_find_all_modules_imported_except_the_users(
    world: EndpointWorld, app: Path
) -> None:
    with world.endpoint(app, RUNPOD_POD_ID="pod", FLASHPOOL_HOST="127.0.0.1") as server:
        server.wait_ready()
        first = ask(server, "os.getpid()")
        (zygote,) = until(lambda: loaded_zygotes(server), 200)
        assert (zygote["reason"], zygote["skipped"]) == (None, {})
        assert zygote["preloaded"] > 500
        assert server.http.get("/items/1", params={"q": "os._exit(3)"}).status_code == 502
        server.wait_ready()
        assert ask(server, "os.getpid()") != first
        # The user's modules are imported in the worker itself.
        assert ask(server, "BORN == os.getpid()")
        assert ask(server, "os.getcwd()") == os.path.realpath(world.link)
        assert ask(server, "importlib.util.find_spec('msgspec')") is None


@pytest.mark.slow
def test_the_image_serves_an_endpoint_under_uvicorn(world: EndpointWorld, app: Path) -> None:
    with world.endpoint(app, command=UVICORN) as server:
        server.wait_ready()
        assert server.http.get("/items/7").json() == {"item": 7, "q": None}
        assert server.http.post("/execute", json={"input": {}}).status_code == 404
        assert log_lines(server, "The app shop; stats: http://")


@pytest.mark.slow
@pytest.mark.parametrize("command", [SERVE_LB, UVICORN], ids=["serve-lb", "uvicorn"])
def test_probes_are_answered_on_a_separate_port(
    command: tuple[Any, ...], world: EndpointWorld, tmp_path: Path, free_port: int
) -> None:
    with world.endpoint(
        tmp_path / "none", command=command, FLASHPOOL_HEALTH_PORT=str(free_port)
    ) as server:
        wait_failed(server)
        import httpx

        answer = httpx.get(f"http://127.0.0.1:{free_port}/ping", trust_env=False)
        assert answer.status_code == 503
        assert answer.json() == server.http.get("/ping").json()


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.mark.slow
def test_the_real_client_calls_its_routes(
    world: EndpointWorld, app: Path, client_python: Path, tmp_path: Path
) -> None:
    script = Path(__file__).parent / "client" / "deployed_calls.py"
    with world.endpoint(app) as server:
        server.wait_ready()
        done = subprocess.run(
            [client_python, script, server.url],
            cwd=tmp_path,
            env={"HOME": str(tmp_path), "PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)},
            capture_output=True,
            timeout=110,
            check=False,
        )
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["get"] == {"value": {"item": 7, "q": None}}
    assert found["post"] == {"value": {"steps": 3}}
    assert found["route"] == {"value": {"steps": 5}}
    assert found["missing"]["raised"] == "RuntimeError"
    assert found["wrong"]["raised"] == "HTTPStatusError"
    # Calling a function without a route sends code, which the endpoint does not run.
    assert found["code"]["raised"] == "RuntimeError"
    assert "404" in found["code"]["text"]


# Endpoints that cannot be served.


def not_a_tar(tmp_path: Path, _: Path) -> Path:
    (tmp_path / "a.tar.gz").write_bytes(b"not a gzip")
    return tmp_path / "a.tar.gz"


def cut_off(tmp_path: Path, artifact: Path) -> Path:
    (tmp_path / "a.tar.gz").write_bytes(artifact.read_bytes()[:20000])
    return tmp_path / "a.tar.gz"


def absent(tmp_path: Path, _: Path) -> Path:
    return tmp_path / "nothing.tar.gz"


def leading_out(tmp_path: Path, _: Path) -> Path:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../up"))
    return tmp_path / "a.tar.gz"


def manifest(text: bytes) -> Any:
    def made(tmp_path: Path, artifact: Path) -> Path:
        return with_files(artifact, tmp_path / "a.tar.gz", {"flash_manifest.json": text})

    return made


def other_format(tmp_path: Path, _: Path) -> Path:
    (tmp_path / "runpod_manifest.json").write_text("{}")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "runpod_manifest.json", "runpod_manifest.json")
    return tmp_path / "a.tar.gz"


def no_app(tmp_path: Path, artifact: Path) -> Path:
    return with_files(artifact, tmp_path / "a.tar.gz", {"handler_shop.py": b"x = 1\n"})


def as_it_is(_: Path, artifact: Path) -> Path:
    return artifact


@pytest.mark.parametrize(
    ("make", "resource", "words"),
    [
        (absent, "shop", ("nothing.tar.gz", "FLASH_BUILD_ARTIFACT_PATH")),
        (not_a_tar, "shop", ("a.tar.gz", "gzip")),
        (cut_off, "shop", ("a.tar.gz", "cut off")),
        (leading_out, "shop", ("../up",)),
        (manifest(b"{"), "shop", ("flash_manifest.json", "not JSON")),
        (other_format, "shop", ("runpod_manifest.json", "runpod 2")),
        (as_it_is, "shoop", ("'shoop'", "counter, qb-conc, shop")),
        (as_it_is, "../up", ("'../up'", "counter, qb-conc, shop")),
        (no_app, "shop", ("handler_shop.py", "has no 'app'", "handler_counter.py")),
    ],
    ids=[
        *("absent", "not-a-tar", "cut-off", "leads-out", "not-json", "other-format"),
        *("no-such-resource", "name-with-dots", "no-app"),
    ],
)
@pytest.mark.slow
def test_an_endpoint_that_cannot_be_served_says_why(
    make: Any,
    resource: str,
    words: tuple[str, ...],
    world: EndpointWorld,
    shop_artifact: Path,
    tmp_path: Path,
) -> None:
    with world.endpoint(make(tmp_path, shop_artifact), resource) as server:
        reason = wait_failed(server)
        for word in words:
            assert word in reason
        assert server.http.get("/items/1").status_code == 503
        assert server.http.post("/execute").status_code == 404
        assert len(until(lambda: log_lines(server, "ERROR"))) == 1
        assert words[0] in log_lines(server, "ERROR")[0]
    assert server.process.returncode == 0


@pytest.mark.slow
def test_an_artifact_that_arrives_late_is_served(
    world: EndpointWorld, app: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "late.tar.gz"
    with world.endpoint(archive) as server:
        wait_failed(server)
        app.rename(archive)
        server.wait_ready()
        assert server.http.get("/items/7").status_code == 200


# Apps that cannot be loaded.


@pytest.mark.slow
def test_a_module_for_another_python_is_reported_first(
    world: EndpointWorld, shop_artifact: Path, tmp_path: Path
) -> None:
    archive = with_files(
        shop_artifact,
        tmp_path / "a.tar.gz",
        {
            "routes.py": b"import lib.core\n",
            "lib/__init__.py": b"",
            "lib/core.cpython-39-x86_64-linux-gnu.so": b"",
        },
    )
    with world.endpoint(archive) as server:
        reason = wait_failed(server)
        assert reason.startswith(
            "lib/core.cpython-39-x86_64-linux-gnu.so is compiled for cpython-39"
        )
        assert f"the app's Python is {PYTHON}" in reason
        assert len(until(lambda: log_lines(server, "shop cannot be loaded"))) == 1
        assert len(log_lines(server, "Traceback")) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (b"raise RuntimeError('broken on purpose')", "broken on purpose"),
        (b"import sys; sys.exit(3)", "SystemExit"),
        (b"import os; os._exit(3)", "exit code 3"),
        (b"import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        (b"import time; time.sleep(1000)", "FLASHPOOL_APP_START_TIMEOUT_S"),
    ],
    ids=["raises", "exits", "leaves", "segfault", "hangs"],
)
def test_an_app_that_cannot_be_loaded_is_reported(
    code: bytes, words: str, world: EndpointWorld, shop_artifact: Path, tmp_path: Path
) -> None:
    archive = with_files(shop_artifact, tmp_path / "a.tar.gz", {"routes.py": code})
    with world.endpoint(archive, FLASHPOOL_APP_START_TIMEOUT_S="5") as server:
        assert words in wait_failed(server)
        assert server.http.get("/items/1").json()["error_type"] == "AppNotLoaded"
        assert until(lambda: log_lines(server, words))


@pytest.mark.slow
def test_threads_and_much_output_at_import_do_no_harm(
    world: EndpointWorld, shop_artifact: Path, tmp_path: Path
) -> None:
    code = (
        b"import threading, time\n"
        b"threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
        b"for _ in range(64): print('x' * (1 << 20))\n"
    )
    files = {"routes.py": code + ROUTES}
    archive = with_files(shop_artifact, tmp_path / "a.tar.gz", files)
    with world.endpoint(archive, FLASHPOOL_LOG_LEVEL="WARNING") as server:
        server.wait_ready()
        assert server.http.get("/items/7").status_code == 200


@pytest.mark.slow
def test_a_version_conflict_names_the_artifacts_packages(
    world: EndpointWorld, app: Path, tmp_path: Path
) -> None:
    archive = with_files(
        app,
        tmp_path / "a.tar.gz",
        {"pydantic-1.10.dist-info/METADATA": DIST_INFO % (b"pydantic", b"1.10")},
    )
    from envs.conftest import Index

    index = Index(world.index)
    index.add("runpod-flash", "1.21.0", "pydantic>=2")
    index.add("pydantic", "1.10")
    index.add("pydantic", "2.10")
    with world.endpoint(archive) as server:
        reason = wait_failed(server)
        assert "pydantic>=2" in reason
        assert "pydantic==1.10" in reason


@pytest.mark.slow
def test_a_missing_python_is_reported_with_the_available_one(
    world: EndpointWorld, app: Path, tmp_path: Path
) -> None:
    value = json.loads(file_of(app, "flash_manifest.json"))
    value["resources"]["shop"]["target_python_version"] = "3.99"
    files = {"flash_manifest.json": json.dumps(value).encode()}
    with world.endpoint(with_files(app, tmp_path / "a.tar.gz", files)) as server:
        reason = wait_failed(server)
        assert "Python 3.99 is not installed here" in reason
        assert f"the base is Python {PYTHON}." in reason


@pytest.mark.slow
def test_an_environment_on_the_volume_needs_no_index(
    world: EndpointWorld, app: Path, tmp_path: Path
) -> None:
    with world.endpoint(app) as server:
        server.wait_ready()
    (environment,) = (world.folder / "volume" / "flashpool" / "envs").iterdir()
    shutil.rmtree(world.folder / "local")
    world.index.rename(world.folder / "gone")
    world.index.mkdir()
    with world.endpoint(app) as server:
        server.wait_ready()
        assert server.http.get("/items/7").status_code == 200
    assert list((world.folder / "volume" / "flashpool" / "envs").iterdir()) == [environment]


# Applications of the user's own, and apps served by hand.

OWN = b"""
from fastapi import FastAPI
mine = FastAPI()


@mine.post("/execute")
async def execute():
    return "the user's"
"""


@pytest.mark.slow
def test_an_application_of_the_users_own(
    world: EndpointWorld, shop_artifact: Path, tmp_path: Path
) -> None:
    archive = with_files(shop_artifact, tmp_path / "a.tar.gz", {"main.py": OWN})
    with world.endpoint(archive, FLASH_MAIN_FILE="main.py", FLASH_APP_VARIABLE="mine") as server:
        server.wait_ready()
        assert server.http.post("/execute").json() == "the user's"
        assert server.http.get("/items/1").status_code == 404


@pytest.mark.slow
def test_an_artifact_is_served_by_hand(world: EndpointWorld, app: Path, tmp_path: Path) -> None:
    command = (FLASHPOOL, "serve", "app", str(app))
    with world.endpoint(tmp_path / "none", "", command, OF_THE_USER="here") as server:
        server.wait_ready()
        assert server.http.get("/items/7").json() == {"item": 7, "q": None}
        assert ask(server, "'OF_THE_USER' in os.environ") is False
        assert not world.link.exists()


@pytest.mark.slow
def test_a_manifest_that_differs_from_its_app_causes_warnings(
    world: EndpointWorld, app: Path, tmp_path: Path
) -> None:
    value = json.loads(file_of(app, "flash_manifest.json"))
    value["routes"]["shop"] |= {"GET /ping": "x", "FETCH /a": "y"}
    archive = with_files(
        app, tmp_path / "a.tar.gz", {"flash_manifest.json": json.dumps(value).encode()}
    )
    with world.endpoint(archive) as server:
        server.wait_ready()
        assert server.http.get("/items/7").status_code == 200
        until(lambda: log_lines(server, "the manifest has routes that the app lacks"))
    assert log_lines(server, "Function 'x' cannot use reserved path '/ping'")
    assert log_lines(server, "method must be one of GET, POST, PUT, DELETE, PATCH, got: 'FETCH'")


@pytest.mark.slow
def test_endpoints_that_start_together_unpack_once(world: EndpointWorld, app: Path) -> None:
    import contextlib

    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(world.endpoint(app, "nobody")) for _ in range(4)]
        for server in servers:
            wait_failed(server)
    assert sum(len(log_lines(server, "unpacked ")) for server in servers) == 1


@pytest.mark.slow
def test_a_pinned_package_of_the_artifact_decides_about_the_rest(
    world: EndpointWorld, app: Path, tmp_path: Path
) -> None:
    """With the real index: the newest fastapi, which the image has, does not import beside it."""
    uv = find_uv(EnvSettings())
    folder = tmp_path / "unpacked"
    with tarfile.open(app) as tar:
        tar.extractall(folder, filter="data")
    command = [uv, "pip", "install", "-q", "--no-cache", "--python", sys.executable]
    subprocess.run([*command, "--target", folder, "pydantic==2.5.3"], check=True, timeout=100)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(folder, ".")
    with world.endpoint(
        tmp_path / "a.tar.gz", FLASHPOOL_INDEX_URL="", FLASHPOOL_FIND_LINKS=""
    ) as server:
        server.wait_ready()
        assert server.http.get("/items/7").json() == {"item": 7, "q": None}
        assert ask(server, "importlib.import_module('pydantic').VERSION") == "2.5.3"
        file = ask(server, "importlib.import_module('pydantic').__file__")
        assert file.startswith(os.path.realpath(world.link))


@pytest.mark.slow
def test_a_reload_can_be_requested_on_the_admin_listener(
    world: EndpointWorld, shop_artifact: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "app.tar.gz"
    first = with_files(shop_artifact, tmp_path / "1.tar.gz", {"routes.py": ROUTES})
    broken = with_files(shop_artifact, tmp_path / "2.tar.gz", {"routes.py": ROUTES + b"1 / 0\n"})
    code = ROUTES + b"VERSION = 'another'\n"
    second = with_files(shop_artifact, tmp_path / "3.tar.gz", {"routes.py": code})
    version = "getattr(importlib.import_module('routes'), 'VERSION', 'first')"
    with world.endpoint(archive, FLASHPOOL_ADMIN_TOKEN="the-operator-s") as server:
        assert server.admin("POST", "/reload", token="").status_code == 401
        early = server.admin("POST", "/reload")
        assert (early.status_code, early.json()["outcome"]) == (409, "no_app")
        shutil.copy(first, archive)
        server.wait_ready()
        same = server.admin("POST", "/reload")
        assert (same.status_code, same.json()["outcome"]) == (200, "unchanged")
        shutil.copy(broken, archive)
        failed = server.admin("POST", "/reload")
        assert (failed.status_code, failed.json()["outcome"]) == (422, "failed")
        assert "ZeroDivisionError" in failed.json()["detail"]
        assert "the old app serves on" in server.stats()["apps"][0]["note"]
        assert ask(server, version) == "first"
        shutil.copy(second, archive)
        done = server.admin("POST", "/reload")
        assert (done.status_code, done.json()["outcome"]) == (200, "reloaded")
        assert ask(server, version) == "another"
        (line,) = log_lines(server, "POST /reload answered with 422")
        assert "asked by 127.0.0.1" in line
        assert "with the token" in line


@pytest.mark.slow
def test_a_refused_artifact_is_retried_when_it_has_changed(
    world: EndpointWorld, shop_artifact: Path, tmp_path: Path
) -> None:
    archive = manifest(b"{")(tmp_path, shop_artifact)
    with world.endpoint(archive) as server:
        assert "not JSON" in wait_failed(server)
        whole = with_files(shop_artifact, tmp_path / "whole.tar.gz", {"routes.py": ROUTES})
        whole.replace(archive)
        server.wait_ready()
        assert server.http.get("/items/1").json()["item"] == 1
