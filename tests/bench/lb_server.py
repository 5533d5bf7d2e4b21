"""`flashpool serve lb`, started as users start it, for as long as the rows need it."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from bench import http_load

T = TypeVar("T")

START_S = 30.0
STOP_S = 20.0
_LISTENS = re.compile(r"live calls on http://(\S+?):(\d+),.*\nstats: http://(\S+?):(\d+)/stats\n")


class LbServer:
    """One server process; ``address`` and ``admin`` say where it listens. ``program`` is the
    command `flashpool` to start, by default that of this interpreter.
    """

    def __init__(self, folder: Path, program: Path | None = None, **variables: str) -> None:
        self.log = folder / "server.log"
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("FLASHPOOL_", "RUNPOD_"))
        }
        ports = {"FLASHPOOL_PORT": "0", "FLASHPOOL_ADMIN_PORT": "0"}
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                [program or Path(sys.executable).with_name("flashpool"), "serve", "lb"],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**inherited, **ports, **variables},
                cwd=folder,
            )

    def wait_ready(self) -> None:
        until(self._listens, START_S)
        until(self._is_healthy, START_S)

    def _listens(self) -> bool:
        text = self.log.read_text("utf-8", "replace")
        assert self.process.poll() is None, f"the server left: {text}"
        found = _LISTENS.search(text)
        if found:
            host, port, admin_host, admin_port = found.groups()
            self.address, self.admin = (host, int(port)), (admin_host, int(admin_port))
        return found is not None

    def _is_healthy(self) -> bool:
        with http_load.connected(self.address, 1) as (one,):
            one.call(http_load.PING)
            return one.answer.startswith(b"HTTP/1.1 200")

    def stats(self) -> dict[str, Any]:
        asked = http.client.HTTPConnection(*self.admin, timeout=10)
        with contextlib.closing(asked):
            asked.request("GET", "/stats")
            found: dict[str, Any] = json.load(asked.getresponse())
            return found

    def close(self) -> None:
        """Send SIGTERM, and SIGKILL if the exit takes too long: guards clean up afterwards."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def serving(folder: Path, program: Path | None = None, **variables: str) -> Iterator[LbServer]:
    server = LbServer(folder, program, **variables)
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()


def until(condition: Callable[[], T], seconds: float, pause: float = 0.01) -> T:
    """Wait until the condition holds; return its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"{condition.__name__}: still not so after {seconds:g} s"
        time.sleep(pause)
    return value
