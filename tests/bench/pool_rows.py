"""Rows of `Pool`: beside other libraries, and times of failures as a caller sees them."""

import contextlib
import os
import select
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import deaths, victims
from bench.context import Bench, in_turn
from bench.figures import Row, compared, limited

from flashpool.pool import Pool
from flashpool.pool.errors import Timeout, WorkerCrashed

LIMIT_S = 0.2
GRACE_S = 0.5
OVERSHOOTS = 3
#: Calls a round, and the ratio that `Pool` has to reach.
PEERS = {
    "executor": (100, 10.0, "ProcessPoolExecutor(forkserver, max_tasks_per_child=1)"),
    "multiprocessing": (600, 2.5, "multiprocessing.Pool(maxtasksperchild=1)"),
    "pebble": (16, 50.0, "pebble.ProcessPool(max_tasks=1)"),
}
OUR_CALLS = 1500


def maps(bench: Bench) -> list[Row]:
    """`Pool.map` of isolated no-ops beside that of others, as many workers each."""
    peers = dict(PEERS)
    if sys.version_info < (3, 11):
        del peers["executor"]  # it cannot limit the tasks of a process
    rates: dict[str, list[float]] = {name: [] for name in ("flashpool", *peers)}
    counts = {"flashpool": OUR_CALLS, **{name: peer[0] for name, peer in peers.items()}}

    def measure(name: str) -> None:
        rates[name].append(bench.peer(name, counts[name]))

    for number in bench.turns("Pool.map"):
        in_turn(number, *(lambda name=name: measure(name) for name in rates))
    return [
        compared(
            f"Pool.map of isolated no-ops, beside {title.partition('(')[0]}",
            "/s",
            rates["flashpool"],
            title,
            rates[name],
            at_least=target,
            detail={"calls a round": OUR_CALLS, "its calls a round": counts[name]},
        )
        for name, (_, target, title) in peers.items()
    ]


def death(bench: Bench) -> Row:
    """From SIGKILL of a worker to the exception of its future."""
    took: list[float] = []
    path = bench.folder / "sleeper"
    with Pool(2, show_output=False) as pool:
        pool.submit(int).result()
        for _ in bench.turns("death, Pool"):
            for _ in range(deaths.DEATHS):
                future = pool.submit(victims.sleep, str(path))
                pid = victims.wait_for_pids(path)[0]
                killed = time.perf_counter()
                os.kill(pid, signal.SIGKILL)
                error = future.exception(10)
                took.append((time.perf_counter() - killed) * 1e3)
                assert isinstance(error, WorkerCrashed), error
    return deaths.row("a worker", "the future", took)


def overshoot(bench: Bench) -> Row:
    """How long after limit and grace a call that ignores signals is gone and reported."""
    over: list[float] = []
    reported: list[float] = []
    with Pool(2, show_output=False, grace_s=GRACE_S) as pool:
        pool.submit(int).result()
        for _ in bench.turns("time limit"):
            for _ in range(OVERSHOOTS):
                outcome_s, gone_s = _overrun(pool, bench.folder / "pids")
                reported.append((outcome_s - LIMIT_S) * 1e3)
                over.append((max(outcome_s, gone_s) - LIMIT_S - GRACE_S) * 1e3)
    return limited(
        "a time limit's overshoot, tree gone and reported",
        "ms",
        over,
        at_most=50,
        worst=True,
        detail={
            "limit s": LIMIT_S,
            "grace s": GRACE_S,
            "reported ms after the limit": statistics.median(reported),
            "max ms": max(over),
        },
    )


def _overrun(pool: Pool, path: Path) -> tuple[float, float]:
    """Seconds from submission to the outcome, and until both processes are gone."""
    began = time.perf_counter()
    future = pool.options(timeout=LIMIT_S).submit(victims.stubborn, str(path))
    pids = victims.wait_for_pids(path)
    with contextlib.ExitStack() as stack:
        poll = select.poll()
        for pid in pids:
            watched = os.pidfd_open(pid)
            stack.callback(os.close, watched)
            poll.register(watched, select.POLLIN)
        error = future.exception(10)
        outcome_s = time.perf_counter() - began
        assert isinstance(error, Timeout), error
        while len(poll.poll(0)) < 2:
            assert time.perf_counter() - began < 10, "the tree is not gone"
            time.sleep(0.0005)
        return outcome_s, time.perf_counter() - began


def arrays(bench: Bench) -> list[Row]:
    """A large array to a call and one as large back; GB of one way a second of both.

    Every call is made twice and the second one counts. A virtual machine gives free memory
    back to its host, and to get it again takes seconds a GB; right after the first call it
    is still there. What a bare copy to shared memory takes then stands beside it.
    """
    import numpy as np

    size = 1_000_000_000 if _available() > 8e9 else 256_000_000
    rates: dict[str, list[float]] = {"the same back": [], "a new one back": []}
    copies: list[float] = []
    sent = np.arange(size // 8, dtype=np.int64)

    def send(function: Callable[[Any], Any], into: list[float], added: int) -> None:
        for counts in (False, True):
            began = time.perf_counter()
            received = pool.submit(function, sent).result()
            if counts:
                into.append(size / 1e9 / (time.perf_counter() - began))
            assert received.nbytes == size
            assert (received[[0, 12345, -1]] == sent[[0, 12345, -1]] + added).all()
            del received

    with Pool(1, show_output=False) as pool:
        for number in bench.turns("array"):
            in_turn(
                number,
                lambda: send(victims.same, rates["the same back"], 0),
                lambda: send(victims.plus_one, rates["a new one back"], 1),
            )
            copies.append(size / 1e9 / _copy(sent.view(np.uint8).data))
    return [
        limited(
            f"1 GB NumPy array in and out through Pool, {which}",
            "GB/s",
            found,
            at_least=1.0,
            detail={
                "array GB": size / 1e9,
                "one bare copy to shared memory GB/s": statistics.median(copies),
            },
        )
        for which, found in rates.items()
    ]


def _copy(data: memoryview) -> float:
    """Seconds of writing it to new shared memory."""
    with os.fdopen(os.memfd_create("bench"), "wb", buffering=0) as file:
        began, at = time.perf_counter(), 0
        while at < len(data):
            at += file.write(data[at:]) or 0
        return time.perf_counter() - began


def _available() -> float:
    for line in Path("/proc/meminfo").read_text("ascii").splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    return 0.0
