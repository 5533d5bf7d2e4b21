"""A real server: `flashpool serve lb` as a process, and requests to it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import psutil

FLASHPOOL: Final = Path(sys.executable).with_name("flashpool")
START_LIMIT_S: Final = 45.0
_LISTENS: Final = re.compile(rb"live calls on (http://\S+),.*\nstats: (http://\S+)/stats\n")


class ServerProcess:
    """A server process of any kind; `http` is a client of it."""

    START_LIMIT_S = START_LIMIT_S

    def __init__(
        self, log: Path, command: list[Any], announcement: re.Pattern[bytes], **options: Any
    ) -> None:
        """``announcement``: what the log says of its address, and of the admin listener's."""
        self._log = log
        self._announcement = announcement
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                # A process group of its own, as a shell on a terminal creates.
                start_new_session=True,
                **options,
            )
        self.http = httpx.Client(timeout=60, trust_env=False)
        self.url = self.admin_url = ""

    def wait_listening(self) -> None:
        found = until(self._listening, self.START_LIMIT_S)
        self.url, *admin = (address.decode() for address in found.groups())
        self.admin_url = "".join(admin)
        self.http.base_url = httpx.URL(self.url)

    def _listening(self) -> Any:
        if self.process.poll() is not None:
            raise AssertionError(f"the server left: {self.log()}")
        return self._announcement.search(self._log.read_bytes())

    def wait_ready(self) -> None:
        if not self.url:
            self.wait_listening()
        until(lambda: self.http.get("/ping").status_code == 200, self.START_LIMIT_S)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def stats(self) -> Any:
        limit_s = self.START_LIMIT_S
        return httpx.get(f"{self.admin_url}/stats", timeout=limit_s, trust_env=False).json()

    def tree(self) -> list[psutil.Process]:
        """Every process of the server, except the server itself."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, limit_s: float = 40.0) -> int:
        """Send SIGTERM; return the exit status."""
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


class Server(ServerProcess):
    """`flashpool serve lb` with live calls; `url` and `admin` say where it listens."""

    def __init__(self, log: Path, variables: dict[str, str]) -> None:
        ports = {"FLASHPOOL_PORT": "0", "FLASHPOOL_ADMIN_PORT": "0"}
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("FLASHPOOL", "RUNPOD"))}
        env = {**environ, **ports, **variables}
        super().__init__(log, [FLASHPOOL, "serve", "lb"], _LISTENS, env=env)

    @property
    def admin(self) -> str:
        return self.admin_url

    def execute(self, code: str, *args: Any, **fields: Any) -> dict[str, Any]:
        """Call the first function of ``code``; return the fields of the answer."""
        return self.http.post("/execute", json=request(code, *args, **fields)).json()  # type: ignore[no-any-return]

    def zygotes(self) -> list[int]:
        return [zygote["pid"] for zygote in self.stats()["zygotes"] if zygote["pid"]]


def request(code: str, *args: Any, **fields: Any) -> dict[str, Any]:
    """Build a request with JSON arguments."""
    match = re.search(r"def (\w+)", code)
    assert match
    return {
        "function_name": match[1],
        "function_code": code,
        "args": list(args),
        "serialization_format": "json",
        **fields,
    }


@contextlib.contextmanager
def serving(folder: Path, **variables: str) -> Iterator[Server]:
    server = Server(folder / "server.log", variables)
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()


def until(condition: Callable[[], Any], limit_s: float = 30.0) -> Any:
    """Wait until the condition is true, or fail."""
    end = time.monotonic() + limit_s
    while not (value := _tried(condition)):
        assert time.monotonic() < end, f"still not so after {limit_s:g} s"
        time.sleep(0.01)
    return value


def _tried(condition: Callable[[], Any]) -> Any:
    try:
        return condition()
    except httpx.TransportError:
        return None


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return the pids that are neither gone nor zombies; our own zombies are reaped."""
    left = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                left.append(process)
    return left


def report(value: Any) -> str:
    return json.dumps(value, indent=1)[:2000]
