"""Rows measured over HTTP, at a `flashpool serve lb` of default settings."""

import contextlib
import inspect
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

from bench import deaths, http_load, victims
from bench.context import Bench, Floor, in_turn
from bench.figures import Row, compared, limited, percentile
from bench.lb_server import LbServer, until

FLOOR_S = 1.0
LOAD_S = 2.0
CONNECTIONS = 16
PINGS_PER_S = 200
PING_S = 3.0
#: Calls after which the server's memory is measured.
CALLS = 2000
SPIN = http_load.request("def spin():\n    while True:\n        pass\n", timeout_s=120)
PANDAS = http_load.request("def load():\n    import pandas\n    return None\n")


def throughput(bench: Bench) -> Row:
    """No-ops a second over /execute, beside bare forks a second."""
    loads: list[http_load.Load] = []
    floors: list[Floor] = []
    address = bench.server.address
    http_load.saturate(address, http_load.NOOP, CONNECTIONS, 1.0)
    for number in bench.turns("calls a second"):
        in_turn(
            number,
            lambda: floors.append(bench.floor(FLOOR_S)),
            lambda: loads.append(http_load.saturate(address, http_load.NOOP, CONNECTIONS, LOAD_S)),
        )
    return compared(
        f"isolated no-op calls over /execute, {CONNECTIONS} connections",
        "/s",
        [load.rate for load in loads],
        "bare python -I -S: fork, message, exit, wait",
        [floor.rate for floor in floors],
        at_least=0.6,
        detail=http_load.told(loads),
    )


def latency(bench: Bench) -> Row:
    """The median call at one connection, beside the median bare fork."""
    medians: list[float] = []
    floors: list[Floor] = []
    p99: list[float] = []
    address = bench.server.address

    def ours() -> None:
        load = http_load.one_by_one(address, http_load.NOOP, LOAD_S)
        medians.append(statistics.median(load.latencies) * 1e3)
        p99.append(percentile(load.latencies, 0.99) * 1e3)

    for number in bench.turns("latency"):
        in_turn(number, lambda: floors.append(bench.floor(FLOOR_S)), ours)
    return compared(
        "median latency of such a call, 1 connection",
        "ms",
        medians,
        "one such fork, median",
        [floor.latency_s * 1e3 for floor in floors],
        at_most=2.5,
        detail={
            "p99 ms": statistics.median(p99),
            "fork's CPU µs": statistics.median(floor.cpu_us for floor in floors),
            "fork's page faults": statistics.median(floor.faults for floor in floors),
        },
    )


def death(bench: Bench) -> Row:
    """Death of a worker during a call."""
    path = bench.folder / "sleeper"
    code = f"import os, time\n{inspect.getsource(victims.sleep)}"
    request = http_load.request(
        code, function_name="sleep", args=[str(path)], serialization_format="json"
    )
    return deaths.over_http(bench, "a worker", request, path)


def second_import(bench: Bench) -> Row:
    """Calls that import pandas, once the pool has learned that they do, beside no-ops."""
    server = bench.server
    above: list[float] = []
    noops: list[float] = []
    with http_load.connected(server.address, 1) as (one,):
        first = one.call(PANDAS)
        one.check()
        until(lambda: _has_learned(server), 20)
        second = one.call(PANDAS)
        until(lambda: _is_preloaded(one), 10)
        for number in bench.turns("pandas"):
            took: dict[bytes, list[float]] = {PANDAS: [], http_load.NOOP: []}

            def measure(data: bytes, into: dict[bytes, list[float]] = took) -> None:
                for _ in range(50):
                    into[data].append(one.call(data))
                    one.check()

            in_turn(number, lambda: measure(PANDAS), lambda: measure(http_load.NOOP))
            noop = statistics.median(took[http_load.NOOP]) * 1e3
            noops.append(noop)
            above.append(statistics.median(took[PANDAS]) * 1e3 - noop)
    return limited(
        "a later call that imports pandas: above a no-op",
        "ms",
        above,
        at_most=10,
        detail={
            "no-op ms": statistics.median(noops),
            "first call ms": first * 1e3,
            "second call ms": second * 1e3,
        },
    )


def _has_learned(server: LbServer) -> bool:
    zygotes = server.stats()["zygotes"]
    refused = {name: why for zygote in zygotes for name, why in zygote["skipped"].items()}
    assert not refused, f"the pool does not preload it: {refused}"
    return any(
        zygote["profile"] > 0 and zygote["state"] == "ready" and zygote["spares"] > 0
        for zygote in zygotes
    )


def _is_preloaded(one: http_load.Connection) -> bool:
    one.call(PANDAS)
    one.check()
    return bool(one.body()["receipt"]["preloaded"])


def ping(bench: Bench) -> Row:
    """Probes while every slot computes."""
    server = bench.server
    slots = server.stats()["slots"]["total"]
    p99: list[float] = []
    everything: list[float] = []
    idle: list[float] = []

    def probe(into: list[float]) -> list[float]:
        load = http_load.paced(server.address, http_load.PING, PINGS_PER_S, PING_S)
        into += load.latencies
        return load.latencies

    for _ in bench.turns("/ping"):
        probe(idle)
        with _all_busy(server, slots):
            p99.append(percentile(probe(everything), 0.99) * 1e3)
    return limited(
        "/ping with all slots busy, 99th percentile",
        "ms",
        p99,
        at_most=20,
        detail={
            "pings": len(everything),
            "p50 ms": statistics.median(everything) * 1e3,
            "max ms": max(everything) * 1e3,
            "idle p99 ms": percentile(idle, 0.99) * 1e3,
        },
    )


@contextlib.contextmanager
def _all_busy(server: LbServer, slots: int) -> Iterator[None]:
    with http_load.connected(server.address, slots) as found:
        for one in found:
            one.send(SPIN)
        until(lambda: server.stats()["slots"]["busy"] == slots, 10)
        yield
    # The clients have disconnected, so the calls end soon.
    until(lambda: server.stats()["slots"]["busy"] == 0, 20)


def server_memory(bench: Bench) -> Row:
    """The server's resident memory after thousands of calls."""
    server = bench.server
    while server.stats()["calls"] < CALLS:
        http_load.saturate(server.address, http_load.NOOP, CONNECTIONS, 0.5)
    status = Path(f"/proc/{server.process.pid}/status").read_text("ascii")
    stats = server.stats()
    return limited(
        "the server's resident memory",
        "MB",
        [_kb(status, "VmRSS") * 1024 / 1e6],
        at_most=120,
        detail={
            "calls": stats["calls"],
            "peak MB": _kb(status, "VmHWM") * 1024 / 1e6,
            "open files": stats["supervisor"]["open_files"],
        },
    )


def spare_memory(bench: Bench) -> Row:
    """Private pages of a spare: the pages it wrote to since its fork."""
    server = bench.server
    http_load.saturate(server.address, http_load.NOOP, CONNECTIONS, 0.2)
    zygote = until(lambda: _idle_zygote(server), 10)
    rollups = []
    residents = {one["pid"] for one in server.stats()["instances"]}
    for pid in set(_children(zygote)) - residents:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            rollups.append(Path(f"/proc/{pid}/smaps_rollup").read_text("ascii"))
    return limited(
        "a spare's own pages (private and dirty)",
        "MB",
        [_kb(rollup, "Private_Dirty") * 1024 / 1e6 for rollup in rollups],
        at_most=4,
        worst=True,
        detail={
            "spares": len(rollups),
            "resident MB": statistics.median(_kb(one, "Rss") for one in rollups) * 1024 / 1e6,
            "share of all MB (PSS)": statistics.median(_kb(one, "Pss") for one in rollups)
            * 1024
            / 1e6,
        },
    )


def _idle_zygote(server: LbServer) -> int | None:
    stats = server.stats()
    lean = next(zygote for zygote in stats["zygotes"] if zygote["profile"] == 0)
    residents = sum(one["pid"] is not None for one in stats["instances"])
    only_spares = lean["spares"] > 0 and lean["workers"] == lean["spares"] + residents
    pid: int = lean["pid"]
    return pid if only_spares and not stats["running"] else None


def _children(pid: int) -> list[int]:
    return [
        int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    ]


def _kb(text: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    assert found, name
    return int(found[1])
