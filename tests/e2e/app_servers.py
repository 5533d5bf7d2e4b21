"""Real servers of an app: `flashpool serve app`, and plain uvicorn beside it."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
from e2e.server import FLASHPOOL, ServerProcess

APPS: Final = Path(__file__).with_name("apps")
#: An app imports much, and the machine may be busy.
START_LIMIT_S: Final = 250.0
ANNOUNCEMENT: Final = re.compile(rb"the app \S+ on (http://\S+)\nstats: (http://\S+)/stats\n")
UVICORN_SAYS: Final = re.compile(rb"Uvicorn running on (http://\S+)")


class AppServer(ServerProcess):
    """A server of an app; it listens before it is ready."""

    START_LIMIT_S = START_LIMIT_S

    def admin(self, method: str, path: str, token: str = "the-operator-s") -> httpx.Response:
        """Ask the admin listener; ``token`` is what FLASHPOOL_ADMIN_TOKEN was set to."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        url, limit_s = self.admin_url + path, self.START_LIMIT_S
        return httpx.request(method, url, headers=headers, timeout=limit_s, trust_env=False)


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
    """Run `flashpool serve app`; its log is in ``folder``."""
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
    """Run the app under plain uvicorn, as users do without flashpool."""
    command = [sys.executable, "-m", "uvicorn", f"{module}:app", "--port", "0", "--loop", "uvloop"]
    command += ["--http", "httptools", "--no-access-log"]
    server = AppServer(folder / "uvicorn.log", command, UVICORN_SAYS, cwd=app, env=app_environ())
    try:
        server.wait_listening()
        yield server
    finally:
        server.close()
