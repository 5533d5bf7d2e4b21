"""The time until a caller learns that its call's process was killed."""

import os
import signal
import statistics
import time
from pathlib import Path

from bench import http_load, victims
from bench.context import Bench
from bench.figures import Row, limited

#: Kills a round.
DEATHS = 10


def over_http(bench: Bench, what: str, request: bytes, path: Path) -> Row:
    """From SIGKILL of the process that writes its pid to ``path`` to the complete answer."""
    took: list[float] = []
    for _ in bench.turns(f"{what} is killed, over HTTP"):
        for _ in range(DEATHS):
            with http_load.connected(bench.server.address, 1) as (one,):
                one.send(request)
                pid = victims.wait_for_pids(path)[0]
                killed = time.perf_counter()
                os.kill(pid, signal.SIGKILL)
                while not one.receive():
                    pass
                took.append((time.perf_counter() - killed) * 1e3)
                assert one.body()["error_type"] == "WorkerCrashed", one.answer
    return row(what, "the HTTP client", took)


def row(what: str, to: str, took: list[float]) -> Row:
    """Make a row of the milliseconds that each report took."""
    return limited(
        f"the death of {what} is reported, to {to}",
        "ms",
        took,
        at_most=10,
        worst=True,
        detail={"deaths": len(took), "p50 ms": statistics.median(took), "max ms": max(took)},
    )
