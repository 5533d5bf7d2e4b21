"""Servers of the bench's application: `flashpool serve app`, and plain uvicorn as its reference."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from bench import http_load
from bench.context import HERE, Bench
from bench.lb_server import until

START_S = 60.0
APPS = HERE / "apps"
REFERENCE = "plain uvicorn: uvloop, httptools, 1 worker"
_GET = b"GET %b HTTP/1.1\r\nHost: bench\r\nAccept: */*\r\nUser-Agent: bench\r\n\r\n"
_OURS = [str(Path(sys.executable).with_name("flashpool")), "serve", "app", str(APPS)]
_PLAIN = [sys.executable, "-m", "uvicorn", "handler_bench:app", "--port", "0", "--no-access-log"]
_PLAIN += ["--loop", "uvloop", "--http", "httptools"]
_LISTENS = re.compile(r"(?:the app bench|running) on http://127\.0\.0\.1:(\d+)")
_STATS = re.compile(r"^stats: (http://\S+/stats)$", re.MULTILINE)
_TICKS = os.sysconf("SC_CLK_TCK")


def get(path: str) -> bytes:
    """Build a GET request for a route."""
    return _GET % path.encode()


NOOP = get("/noop")


class AppServer:
    """One server process, and where it listens; ``start_s``: until it answered for the first time."""

    def __init__(self, log: Path, command: list[str], first: bytes, **variables: str) -> None:
        environ = {"FLASHPOOL_PORT": "0", "FLASHPOOL_ADMIN_PORT": "0", "PATH": "/usr/bin:/bin"}
        self.log = log
        began = time.perf_counter()
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=file, cwd=APPS, env={**environ, **variables}
            )
        try:
            until(self._listens, START_S)
            until(lambda: self._answers(first), START_S)
        except BaseException:
            self.close()
            raise
        self.start_s = time.perf_counter() - began

    def _listens(self) -> bool:
        text = self.log.read_text("utf-8", "replace")
        assert self.process.poll() is None, f"the server left: {text}"
        found = _LISTENS.search(text)
        if found:
            self.address = "127.0.0.1", int(found[1])
        return found is not None

    def _answers(self, request: bytes) -> bool:
        with http_load.connected(self.address, 1) as (one,):
            one.call(request)
            return one.answer.startswith(b"HTTP/1.1 200")

    def wait_preloaded(self) -> None:
        """Wait until successors of its worker find its imports preloaded."""
        found = _STATS.search(self.log.read_text("utf-8", "replace"))
        assert found is not None
        url = found[1]

        def is_preloaded() -> bool:
            with urllib.request.urlopen(url, timeout=10) as answer:
                zygotes = json.load(answer)["zygotes"]
            return any(one["profile"] and one["state"] == "ready" for one in zygotes)

        until(is_preloaded, START_S, 0.1)

    def worker(self) -> int:
        """The process in which routes run."""
        with http_load.connected(self.address, 1) as (one,):
            one.call(get("/pid"))
            return int(one.body()["pid"])

    def cpu_s(self) -> float:
        """CPU time of all its processes that are alive."""
        found, used = [self.process.pid], 0.0
        for pid in found:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
                fields = stat.rpartition(")")[2].split()
                used += (int(fields[11]) + int(fields[12])) / _TICKS
                for task in Path(f"/proc/{pid}/task").iterdir():
                    found += map(int, (task / "children").read_text("ascii").split())
        return used

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(START_S)


@contextlib.contextmanager
def ours(bench: Bench, **variables: str) -> Iterator[AppServer]:
    """Start `flashpool serve app` and wait until its app answers."""
    first = get("/ping")
    with contextlib.closing(AppServer(bench.folder / "app.log", _OURS, first, **variables)) as one:
        yield one


@contextlib.contextmanager
def plain(bench: Bench) -> Iterator[AppServer]:
    """Start the reference."""
    with contextlib.closing(AppServer(bench.folder / "uvicorn.log", _PLAIN, NOOP)) as one:
        yield one


@contextlib.contextmanager
def both(bench: Bench, **variables: str) -> Iterator[tuple[AppServer, AppServer]]:
    """Start both servers."""
    with ours(bench, **variables) as one, plain(bench) as other:
        yield one, other
