"""Deployed APIs: the artifact that SDK 2.0's own command builds, and `flashpool serve app`."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest
from e2e.server import FLASHPOOL, until
from sdk2.sdk_client import APPS

from support.client import sdk_python

pytestmark = [pytest.mark.shared_pool, pytest.mark.timeout(300)]

_LISTENS: Final = re.compile(r"the app (\S+) on (http://\S+)\n")
MANIFEST: Final = {
    "version": 1,
    "app": "shop",
    "pythonVersion": "{}.{}".format(*sys.version_info),
    "resources": [
        {"kind": "api", "name": "Counter", "module": "live_api", "qualname": "Counter"},
        {"kind": "api", "name": "with-factory", "module": "live_api", "asgiFactory": "web"},
        {"kind": "queue", "name": "scale", "module": "live_queue", "qualname": "scale"},
    ],
    "excludedPackages": [],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As an artifact is unpacked; its packages are those of the client's virtualenv."""
    folder = tmp_path_factory.mktemp("app")
    for name in ("live_api.py", "live_queue.py"):
        shutil.copy(APPS / name, folder)
    (folder / "runpod_manifest.json").write_text(json.dumps(MANIFEST))
    (packages,) = sdk_python().parents[1].glob("lib/python*/site-packages")
    (folder / "env").symlink_to(packages)
    return folder


@pytest.fixture(scope="module")
def http(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    log = tmp_path_factory.mktemp("server") / "server.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [FLASHPOOL, "serve", "app", str(folder), "--resource", "Counter", "--port", "0"],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(log.parent),
                "TMPDIR": os.environ["TMPDIR"],
                "FLASHPOOL_ADMIN_PORT": "0",
                "FLASHPOOL_APP_WORKERS": "1",
            },
            start_new_session=True,
        )
    try:
        found = until(lambda: _LISTENS.search(log.read_text()), 90)
        with httpx.Client(base_url=found[2], timeout=60, trust_env=False) as client:
            until(lambda: client.get("/ping").status_code == 200)
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(40)


def test_routes_of_a_class(http: httpx.Client) -> None:
    assert http.post("/add", json={"by": 5}).json() == {"n": 105}
    assert http.get("/n").json() == 105
    assert http.get("/items/7", params={"double": "yes"}).json() == 14


def test_nobody_may_send_code(http: httpx.Client) -> None:
    assert http.post("/execute", json={}).status_code == 404
    assert http.post("/_runpod/sync", json={}).status_code == 404


def test_check_tells_what_there_is(folder: Path) -> None:
    done = subprocess.run(
        [FLASHPOOL, "check", str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    told = done.stdout + done.stderr
    assert "Counter" in told
    assert "with-factory" in told
    assert "scale" in told
