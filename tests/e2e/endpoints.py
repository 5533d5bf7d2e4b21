"""Real servers of a deployed endpoint, as the platform starts them: a resource is named, no folder."""

import base64
import contextlib
import hashlib
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from e2e.app_servers import ANNOUNCEMENT, START_LIMIT_S, UVICORN_SAYS, AppServer, app_environ
from e2e.server import FLASHPOOL, until

from flashpool.pool.workers.ends.outcomes import runtime_packages
from support.client import ROOT

DOCKER: Final = ROOT / "docker"
SERVE_LB: Final = (FLASHPOOL, "serve", "lb")
UVICORN: Final = (sys.executable, "-m", "uvicorn", "lb_handler:app", "--port", "0")


def repack(found: metadata.Distribution, folder: Path) -> None:
    """Build a wheel from an installed package, for an index without a network."""
    files = found.files or ()
    # Some packages vendor others, with their metadata further down.
    (info,) = (file.parts[0] for file in files if file.parts[1:] == ("METADATA",))
    lines = []
    wheel_name = f"{info.removesuffix('.dist-info')}-py3-none-any.whl"
    with zipfile.ZipFile(folder / wheel_name, "w") as wheel:
        for file in files:
            path = str(file)
            if path.startswith("..") or "__pycache__" in path or path.endswith("/RECORD"):
                continue
            data = file.read_binary()
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            lines.append(f"{path},sha256={digest},{len(data)}\n")
            wheel.writestr(path, data)
        record = f"{info}/RECORD"
        wheel.writestr(record, "".join(lines) + f"{record},,\n")


class EndpointWorld:
    """An index without a network, a volume and a local disk, which endpoints share."""

    def __init__(self, folder: Path, client: Path) -> None:
        for name in ("index", "empty", "volume"):
            (folder / name).mkdir(parents=True)
        self.folder = folder
        self.index = folder / "index"
        for name in runtime_packages():
            repack(metadata.distribution(name), self.index)
        self.link = folder / "app"
        self.variables = {
            "FLASHPOOL_BASE_PYTHON": str(client),
            "FLASHPOOL_VOLUME": str(folder / "volume"),
            "FLASHPOOL_LOCAL_DIR": str(folder / "local"),
            "FLASHPOOL_APP_DIR": str(self.link),
            "FLASHPOOL_FIND_LINKS": str(self.index),
            "FLASHPOOL_INDEX_URL": (folder / "empty").as_uri(),
            "FLASHPOOL_ENV_MIN_FREE_MB": "0",
            "FLASHPOOL_ARTIFACT_WAIT_S": "0",
            "FLASHPOOL_START_TIMEOUT_S": "300",
        }

    @contextlib.contextmanager
    def endpoint(
        self,
        archive: Path,
        resource: str = "shop",
        command: tuple[Any, ...] = SERVE_LB,
        **variables: str,
    ) -> Iterator[AppServer]:
        """Start a server; tests that need its app wait for the app."""
        pattern = UVICORN_SAYS if command is UVICORN else ANNOUNCEMENT
        given = {
            **self.variables,
            "FLASHPOOL_ARTIFACT": str(archive),
            "FLASH_RESOURCE_NAME": resource,
            "PYTHONPATH": str(DOCKER),
            **variables,
        }
        given = {name: value for name, value in given.items() if value}
        log = self.folder / f"server-{len(list(self.folder.glob('server-*')))}.log"
        server = AppServer(log, list(command), pattern, env=app_environ(**given))
        try:
            server.wait_listening()
            yield server
        finally:
            server.close()


def wait_failed(server: AppServer) -> str:
    """Wait until the app has failed; return the reason that probes get."""
    until(lambda: server.http.get("/ping").status_code == 503, START_LIMIT_S)
    return str(server.http.get("/ping").json()["reason"])
