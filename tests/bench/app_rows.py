"""Rows of deployed apps: `flashpool serve app` beside plain uvicorn with the same application."""

import contextlib
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import http_load
from bench.context import HERE, Bench, in_turn
from bench.figures import Row, compared
from bench.http_load import Address
from bench.lb_server import until

CONNECTIONS = 16
LOAD_S = 2.0
START_S = 60.0
APPS = HERE / "apps"
REFERENCE = "plain uvicorn: uvloop, httptools, 1 worker"
_HEAD = b"%b HTTP/1.1\r\nHost: bench\r\nAccept: */*\r\nUser-Agent: bench\r\n%b\r\n"
_BODY = json.dumps({"name": "bench", "items": list(range(20))}).encode()
NOOP = _HEAD % (b"GET /noop", b"")
ORDER = _HEAD % (
    b"POST /order",
    b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(_BODY),
)
_MEGABYTE = b"x" * 1_000_000
STREAM = _HEAD % (b"GET /stream", b"")
UPLOAD = _HEAD % (b"POST /upload", b"Content-Length: %d\r\n" % len(_MEGABYTE)) + _MEGABYTE
PAUSE = _HEAD % (b"GET /pause", b"")
#: With how many of the reference's they are to reach, and how much longer one may take.
REQUESTS = {
    "no-op": (NOOP, 0.8, 1.3),
    "JSON body": (ORDER + _BODY, 0.8, 1.3),
    "a stream of 1 MB": (STREAM, 0.5, None),
    "an upload of 1 MB": (UPLOAD, 0.3, None),
}
_OURS = [str(Path(sys.executable).with_name("flashpool")), "serve", "app", str(APPS)]
_PLAIN = [sys.executable, "-m", "uvicorn", "handler_bench:app", "--port", "0", "--no-access-log"]
_PLAIN += ["--loop", "uvloop", "--http", "httptools"]


@contextlib.contextmanager
def serving(log: Path, command: list[str], pattern: str) -> Iterator[Address]:
    """Run a server in the applications' folder until its app answers."""
    environ = {"FLASHPOOL_PORT": "0", "FLASHPOOL_ADMIN_PORT": "0", "PATH": "/usr/bin:/bin"}
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=APPS, env=environ)
    try:
        found = until(lambda: re.search(pattern, log.read_text("utf-8")), START_S)
        assert found is not None
        address = "127.0.0.1", int(found[1])
        with http_load.connected(address, 1) as (one,):
            one.call(NOOP)
        yield address
    finally:
        process.terminate()
        process.wait(START_S)


@contextlib.contextmanager
def both(bench: Bench) -> Iterator[tuple[Address, Address]]:
    """Ours, and the reference."""
    with (
        serving(
            bench.folder / "app.log", _OURS, r"the app bench on http://127\.0\.0\.1:(\d+)"
        ) as ours,
        serving(
            bench.folder / "uvicorn.log", _PLAIN, r"running on http://127\.0\.0\.1:(\d+)"
        ) as plain,
    ):
        yield ours, plain


def rates(bench: Bench) -> list[Row]:
    """Requests a second, and how long one takes, of each kind."""
    with both(bench) as (ours, plain):
        found = []
        for name in REQUESTS:
            found += _of_load(bench, name, ours, plain)
        found.append(_latency(bench, "a no-op request", NOOP, 1.8, ours, plain))
        found.append(_latency(bench, "a request of 5 ms", PAUSE, 1.1, ours, plain))
        return found


def _of_load(bench: Bench, name: str, ours: Address, plain: Address) -> list[Row]:
    request, at_least, at_most = REQUESTS[name]
    loads: dict[Address, list[http_load.Load]] = {ours: [], plain: []}

    def ask(address: Address) -> Callable[[], None]:
        return lambda: loads[address].append(
            http_load.saturate(address, request, CONNECTIONS, LOAD_S)
        )

    for address in loads:
        http_load.saturate(address, request, CONNECTIONS, 1.0)
    for number in bench.turns(f"app, {name}"):
        in_turn(number, ask(ours), ask(plain))
    detail = http_load.told(loads[ours])
    rate = compared(
        f"requests of a deployed app, {name}, {CONNECTIONS} connections",
        "/s",
        [load.rate for load in loads[ours]],
        REFERENCE,
        [load.rate for load in loads[plain]],
        at_least=at_least,
        detail=detail,
    )
    if at_most is None:
        return [rate]
    p50 = compared(
        f"their median, {name}",
        "ms",
        [statistics.median(load.latencies) * 1e3 for load in loads[ours]],
        REFERENCE,
        [statistics.median(load.latencies) * 1e3 for load in loads[plain]],
        at_most=at_most,
    )
    return [rate, p50]


def _latency(
    bench: Bench, what: str, request: bytes, at_most: float, ours: Address, plain: Address
) -> Row:
    medians: dict[Address, list[float]] = {ours: [], plain: []}

    def ask(address: Address) -> Callable[[], None]:
        def one() -> None:
            load = http_load.one_by_one(address, request, LOAD_S)
            medians[address].append(statistics.median(load.latencies) * 1e3)

        return one

    for number in bench.turns(f"app, {what}, 1 connection"):
        in_turn(number, ask(ours), ask(plain))
    return compared(
        f"median of {what} of a deployed app, 1 connection",
        "ms",
        medians[ours],
        REFERENCE,
        medians[plain],
        at_most=at_most,
    )
