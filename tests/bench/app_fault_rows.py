"""Rows of faults in a deployed app: times until clients get an answer, and until recovery."""

import contextlib
import os
import select
import signal
import statistics
import time
from pathlib import Path

from bench import app_server, http_load, victims
from bench.app_server import NOOP, AppServer, get
from bench.context import Bench
from bench.figures import Row, compared, limited, percentile

#: Kills a round.
DEATHS = 5
LIMIT_S, GRACE_S = 0.5, 0.5
PINGS_PER_S = 100
PING_S = 2.0


def deaths(bench: Bench) -> list[Row]:
    """From SIGKILL of the worker to the 502, and to the next answer."""
    path = bench.folder / "app-sleeper"
    told: list[float] = []
    again: list[float] = []
    starts: list[float] = []
    with app_server.ours(bench) as server:
        server.wait_preloaded()
        for _ in bench.turns("the worker of an app is killed"):
            with app_server.plain(bench) as plain:
                starts.append(plain.start_s * 1e3)
            rounds = [_death(server, path) for _ in range(DEATHS)]
            told += [first for first, _ in rounds]
            again.append(statistics.median(second for _, second in rounds))
    return [
        limited(
            "the death of an app's worker is reported, to the HTTP client",
            "ms",
            told,
            at_most=10,
            worst=True,
            detail={"deaths": len(told), "p50 ms": statistics.median(told), "max ms": max(told)},
        ),
        compared(
            "from the death of an app's worker to the next answer",
            "ms",
            again,
            f"a cold start of {app_server.REFERENCE}",
            starts,
            at_most=0.1,
        ),
    ]


def _death(server: AppServer, path: Path) -> tuple[float, float]:
    with http_load.connected(server.address, 2) as (one, other):
        one.send(get(f"/sleep?path={path}"))
        (pid,) = victims.wait_for_pids(path)
        killed = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        while not one.receive():
            pass
        told = (time.perf_counter() - killed) * 1e3
        assert one.body()["error_type"] == "WorkerCrashed", one.answer
        other.call(NOOP)
        other.check()
        return told, (time.perf_counter() - killed) * 1e3


def overrun(bench: Bench) -> list[Row]:
    """A route that computes for ever and ignores SIGTERM, as does its grandchild."""
    path = bench.folder / "app-stubborn"
    late: list[float] = []
    gone: list[float] = []
    variables = {
        "FLASHPOOL_ROUTE_TIMEOUTS": f"GET /stubborn={LIMIT_S}",
        "FLASHPOOL_GRACE_S": str(GRACE_S),
    }
    with app_server.ours(bench, **variables) as server:
        for _ in bench.turns("the limit of a route"):
            answered_s, gone_s = _overrun(server, path)
            late.append((answered_s - LIMIT_S) * 1e3)
            gone.append((gone_s - LIMIT_S - GRACE_S) * 1e3)
    return [
        limited("504 after a route's limit", "ms", late, at_most=50, worst=True),
        limited(
            "its worker and grandchild are gone, after limit + grace",
            "ms",
            gone,
            at_most=50,
            worst=True,
        ),
    ]


def _overrun(server: AppServer, path: Path) -> tuple[float, float]:
    """Seconds until the answer, and until both processes are gone."""
    with contextlib.ExitStack() as stack:
        (one,) = stack.enter_context(http_load.connected(server.address, 1))
        began = time.perf_counter()
        one.send(get(f"/stubborn?path={path}"))
        poll = select.poll()
        for pid in victims.wait_for_pids(path):
            watched = os.pidfd_open(pid)
            stack.callback(os.close, watched)
            poll.register(watched, select.POLLIN)
        while not one.receive():
            pass
        answered_s = time.perf_counter() - began
        assert one.body()["error_type"] == "Timeout", one.answer
        while len(poll.poll(0)) < 2:
            assert time.perf_counter() - began < 10, "the tree is not gone"
            time.sleep(0.0005)
        gone_s = time.perf_counter() - began
        one.call(NOOP)
        one.check()
        return answered_s, gone_s


def ping(bench: Bench) -> Row:
    """Probes while the loop of every worker is blocked."""
    p99: list[float] = []
    idle: list[float] = []
    blocked = get(f"/block?seconds={PING_S * 1.5}")
    with app_server.ours(bench) as server:
        for _ in bench.turns("/ping of an app"):
            idle += http_load.paced(server.address, http_load.PING, PINGS_PER_S, PING_S).latencies
            with http_load.connected(server.address, 1) as (one,):
                one.send(blocked)
                time.sleep(0.1)
                load = http_load.paced(server.address, http_load.PING, PINGS_PER_S, PING_S)
                while not one.receive():
                    pass
                one.check()
            p99.append(percentile(load.latencies, 0.99) * 1e3)
    return limited(
        "/ping while the loop of an app's worker is blocked, 99th percentile",
        "ms",
        p99,
        at_most=20,
        detail={"idle p99 ms": percentile(idle, 0.99) * 1e3},
    )
