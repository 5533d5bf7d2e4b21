"""Real servers of an app: `flashpool serve app`, and plain uvicorn beside it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
from e2e.server import FLASHPOOL, until

APPS: Final = Path(__file__).with_name("apps")
#: An app imports much, and the machine may have a lot to do.
START_LIMIT_S: Final = 250.0
ANNOUNCEMENT: Final = re.compile(rb"the app \S+ on (http://\S+)\nstats: (http://\S+)/stats\n")
UVICORN_SAYS: Final = re.compile(rb"Uvicorn running on (http://\S+)")


class AppServer:
    """A server process; `http` is a client of it."""

    def __init__(self, log: Path, command: list[Any], pattern: re.Pattern[bytes], **options: Any):
        self._log = log
        self._pattern = pattern
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                **options,
            )
        self.http = httpx.Client(timeout=60, trust_env=False)

    def wait_listening(self) -> None:
        found = until(self._listening, START_LIMIT_S)
        self.url = found[1].decode()
        self.http.base_url = httpx.URL(self.url)

    def _listening(self) -> Any:
        assert self.process.poll() is None, f"the server left: {self.log()}"
        return self._pattern.search(self._log.read_bytes())

    def stats(self) -> Any:
        return self.admin("GET", "/stats", token="").json()

    def admin(self, method: str, path: str, token: str = "the-operator-s") -> httpx.Response:
        """Ask the admin listener; ``token`` is what FLASHPOOL_ADMIN_TOKEN was set to."""
        found = self._pattern.search(self._log.read_bytes())
        assert found is not None
        url = found[2].decode() + path
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.request(method, url, headers=headers, timeout=START_LIMIT_S, trust_env=False)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def wait_ready(self) -> None:
        until(lambda: self.http.get("/ping").status_code == 200, START_LIMIT_S)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def tree(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, limit_s: float = 40.0) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(limit_s)

    def close(self) -> None:
        self.http.close()
        if self.process.poll() is None:
            try:
                self.stop()
            finally:
                self.process.kill()
                self.process.wait()


def app_environ(**variables: str) -> dict[str, str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("FLASH", "RUNPOD"))}
    return {**environ, "FLASHPOOL_PORT": "0", "FLASHPOOL_ADMIN_PORT": "0", **variables}


@contextlib.contextmanager
def serving_app(
    folder: Path,
    app: Path = APPS,
    *,
    resource: str | None = None,
    ready: bool = True,
    **variables: str,
) -> Iterator[AppServer]:
    """`flashpool serve app`; its log is in ``folder``."""
    command = [FLASHPOOL, "serve", "app", app, *(["--resource", resource] if resource else [])]
    server = AppServer(folder / "app.log", command, ANNOUNCEMENT, env=app_environ(**variables))
    try:
        server.wait_listening()
        if ready:
            server.wait_ready()
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def plain_uvicorn(
    folder: Path, module: str = "handler_web", app: Path = APPS
) -> Iterator[AppServer]:
    """What users run otherwise."""
    command = [sys.executable, "-m", "uvicorn", f"{module}:app", "--port", "0", "--loop", "uvloop"]
    command += ["--http", "httptools", "--no-access-log"]
    server = AppServer(folder / "uvicorn.log", command, UVICORN_SAYS, cwd=app, env=app_environ())
    try:
        server.wait_listening()
        yield server
    finally:
        server.close()
