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


class Server:
    """One server process; `url` and `admin` say where it listens."""

    def __init__(self, log: Path, variables: dict[str, str]) -> None:
        self._log = log
        ports = {"FLASHPOOL_PORT": "0", "FLASHPOOL_ADMIN_PORT": "0"}
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("FLASHPOOL", "RUNPOD"))}
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [FLASHPOOL, "serve", "lb"],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**environ, **ports, **variables},
                # A group of its own, as a terminal's shell gives it.
                start_new_session=True,
            )
        self.http = httpx.Client(timeout=60, trust_env=False)

    def wait_ready(self) -> None:
        found = until(self._listening, START_LIMIT_S)
        self.url, self.admin = (address.decode() for address in found.groups())
        self.http.base_url = httpx.URL(self.url)
        until(lambda: self.http.get("/ping").status_code == 200, START_LIMIT_S)

    def _listening(self) -> Any:
        if self.process.poll() is not None:
            raise AssertionError(f"the server left: {self.log()}")
        return _LISTENS.search(self._log.read_bytes())

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def execute(self, code: str, *args: Any, **fields: Any) -> dict[str, Any]:
        """Call the function that ``code`` begins with; the answer's fields."""
        return self.http.post("/execute", json=request(code, *args, **fields)).json()  # type: ignore[no-any-return]

    def stats(self) -> dict[str, Any]:
        return httpx.get(f"{self.admin}/stats", timeout=30, trust_env=False).json()  # type: ignore[no-any-return]

    def tree(self) -> list[psutil.Process]:
        """Every process of the server, itself not included."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def zygotes(self) -> list[int]:
        return [zygote["pid"] for zygote in self.stats()["zygotes"] if zygote["pid"]]

    def stop(self, limit_s: float = 40.0) -> int:
        """SIGTERM; its exit status."""
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


def request(code: str, *args: Any, **fields: Any) -> dict[str, Any]:
    """A request with JSON arguments."""
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
    """Wait until it is true, or fail."""
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
    """Those that are neither gone nor zombies (zombies of ours are reaped)."""
    left = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                left.append(process)
    return left


def report(value: Any) -> str:
    return json.dumps(value, indent=1)[:2000]
