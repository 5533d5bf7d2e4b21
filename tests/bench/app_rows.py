"""Rows of deployed apps: `flashpool serve app` beside plain uvicorn with the same application."""

import json
import os
import statistics
from collections.abc import Callable

from bench import http_load
from bench.app_server import NOOP, REFERENCE, AppServer, both
from bench.context import Bench, in_turn
from bench.figures import Row, compared

CONNECTIONS = 16
LOAD_S = 2.0
_HEAD = b"%b HTTP/1.1\r\nHost: bench\r\nAccept: */*\r\nUser-Agent: bench\r\n%b\r\n"
_BODY = json.dumps({"name": "bench", "items": list(range(20))}).encode()
ORDER = _HEAD % (
    b"POST /order",
    b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(_BODY),
)
_MEGABYTE = b"x" * 1_000_000
STREAM = _HEAD % (b"GET /stream", b"")
UPLOAD = _HEAD % (b"POST /upload", b"Content-Length: %d\r\n" % len(_MEGABYTE)) + _MEGABYTE
PAUSE = _HEAD % (b"GET /pause", b"")
#: Targets relative to the reference: the least rate, and the longest time of one request.
REQUESTS = {
    "no-op": (NOOP, 0.8, 1.3),
    "JSON body": (ORDER + _BODY, 0.8, 1.3),
    "a stream of 1 MB": (STREAM, 0.5, None),
    "an upload of 1 MB": (UPLOAD, 0.3, None),
}
#: A route that computes for some milliseconds.
COMPUTE = _HEAD % (b"GET /compute", b"")


def rates(bench: Bench) -> list[Row]:
    """Requests a second, and the time of one request, for each kind."""
    with both(bench) as (ours, plain):
        ours.wait_preloaded()
        found: list[Row] = []
        for name in REQUESTS:
            found += _of_load(bench, name, ours, plain)
        found.append(_latency(bench, "a no-op request", NOOP, 1.8, ours, plain))
        found.append(_latency(bench, "a request of 5 ms", PAUSE, 1.1, ours, plain))
        return found


def _of_load(bench: Bench, name: str, ours: AppServer, plain: AppServer) -> list[Row]:
    request, at_least, at_most = REQUESTS[name]
    loads: dict[AppServer, list[http_load.Load]] = {ours: [], plain: []}
    cpu: dict[AppServer, list[float]] = {ours: [], plain: []}

    def ask(server: AppServer) -> Callable[[], None]:
        def once() -> None:
            before = server.cpu_s()
            load = http_load.saturate(server.address, request, CONNECTIONS, LOAD_S)
            loads[server].append(load)
            cpu[server].append((server.cpu_s() - before) / len(load.latencies) * 1e3)

        return once

    for server in loads:
        http_load.saturate(server.address, request, CONNECTIONS, 1.0)
    for number in bench.turns(f"app, {name}"):
        in_turn(number, ask(ours), ask(plain))
    rate = compared(
        f"requests of a deployed app, {name}, {CONNECTIONS} connections",
        "/s",
        [load.rate for load in loads[ours]],
        REFERENCE,
        [load.rate for load in loads[plain]],
        at_least=at_least,
        detail=http_load.told(loads[ours]),
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
    used = compared(
        f"their CPU time each, all processes, {name}",
        "ms",
        cpu[ours],
        REFERENCE,
        cpu[plain],
        at_most=at_most,
    )
    return [rate, p50, used]


def _latency(
    bench: Bench, what: str, request: bytes, at_most: float, ours: AppServer, plain: AppServer
) -> Row:
    medians: dict[AppServer, list[float]] = {ours: [], plain: []}

    def ask(server: AppServer) -> Callable[[], None]:
        def once() -> None:
            load = http_load.one_by_one(server.address, request, LOAD_S)
            medians[server].append(statistics.median(load.latencies) * 1e3)

        return once

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


def two_workers(bench: Bench) -> Row:
    """Requests a second of a route that computes, in two workers, beside the reference's one."""
    rates: dict[AppServer, list[float]] = {}

    def ask(server: AppServer) -> Callable[[], None]:
        return lambda: rates.setdefault(server, []).append(
            http_load.saturate(server.address, COMPUTE, CONNECTIONS, LOAD_S).rate
        )

    with both(bench, FLASHPOOL_APP_WORKERS="2") as (ours, plain):
        ours.wait_preloaded()
        for number in bench.turns("app, two workers"):
            in_turn(number, ask(ours), ask(plain))
        return compared(
            "requests of a deployed app that compute, two workers",
            "/s",
            rates[ours],
            REFERENCE,
            rates[plain],
            at_least=1.8,
            detail={"cores": len(os.sched_getaffinity(0))},
        )
