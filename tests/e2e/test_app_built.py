"""An app that the real client built, unpacked and served."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from e2e.app_servers import serving_app
from e2e.server import until

pytestmark = pytest.mark.shared_pool

GUIDE = Path(__file__).with_name("guide")


@pytest.fixture(scope="module")
def built(client_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked artifact, built without dependencies so that no index is needed."""
    project = tmp_path_factory.mktemp("built") / "guide"
    shutil.copytree(GUIDE, project, ignore=shutil.ignore_patterns("__pycache__"))
    home = project.parent / "home"
    home.mkdir()
    version = "{}.{}".format(*sys.version_info)
    subprocess.run(
        [client_python.with_name("flash"), "build", "--no-deps", "--python-version", version],
        cwd=project,
        env={"HOME": str(home), "PATH": os.environ["PATH"], "TMPDIR": str(home)},
        capture_output=True,
        timeout=110,
        check=True,
    )
    unpacked = project.parent / "app"
    unpacked.mkdir()
    # Use tar: `tarfile` wants a filter from Python 3.12 on, which Debian's 3.11 does not support.
    subprocess.run(
        ["tar", "-xzf", project / ".flash" / "artifact.tar.gz", "-C", unpacked], check=True
    )
    return unpacked


@pytest.mark.timeout(300)
def test_the_guides_service_is_served_from_its_artifact(
    built: Path, client_python: Path, tmp_path: Path
) -> None:
    with serving_app(tmp_path, built, FLASHPOOL_BASE_PYTHON=str(client_python)) as server:
        http = server.http
        assert http.get("/users").json() == []
        first = http.post("/users", json={"name": "a", "email": "a@x"})
        assert first.json() == {"id": 1, "name": "a", "email": "a@x"}
        assert http.post("/users", json={"name": "a"}).status_code == 422
        assert http.put("/users/1", json={"name": "b"}).json()["name"] == "b"
        assert [user["name"] for user in http.get("/users").json()] == ["b"]
        assert http.delete("/users/7").status_code == 500
        assert http.delete("/users/1").json() == {"deleted": 1}
        # The generated app has this route, and would run code that is sent to it.
        assert http.post("/execute", json={"input": {}}).status_code == 404
        assert "/execute" not in http.get("/openapi.json").json()["paths"]
        assert http.post("/crash").status_code == 502
        assert http.get("/users").json() == []


OWN = """
import os
import click
from fastapi import FastAPI

app = FastAPI()


@app.get("/where")
async def where():
    return [os.getpid(), click.__file__]


@app.post("/crash")
def crash():
    os._exit(3)
"""


def test_an_apps_own_copy_of_a_package_is_what_each_worker_imports(tmp_path: Path) -> None:
    folder = tmp_path / "app"
    (folder / "click").mkdir(parents=True)
    (folder / "click" / "__init__.py").touch()
    (folder / "handler_own.py").write_text(OWN)
    with serving_app(tmp_path, folder) as server:
        first = server.http.get("/where").json()
        # A successor finds the zygote's preloaded modules imported.
        until(lambda: any(one["profile"] and one["pid"] for one in server.stats()["zygotes"]), 60)
        assert server.http.post("/crash").status_code == 502
        second = server.http.get("/where").json()
    assert first[0] != second[0]
    assert first[1] == second[1] == str(folder / "click" / "__init__.py")
