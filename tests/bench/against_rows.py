"""What two checkouts are compared in: `ROWS`.

A row is one kind of call, in bursts. The sides take turns, pair by pair, and each pair begins
with the other one. All bursts of a row are of equally many calls, so many that the slower side
takes half a second for them. What a burst costs its side is read from the kernel's accounts,
before it and when its last worker is gone: the profile is of the very calls that are timed.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from bench import http_load, process_costs, resident_rows
from bench.context import in_turn
from bench.lb_server import until
from bench.process_costs import Costs
from bench.sides import Side

CONNECTIONS = 16
WARM_UP_S = 1.0
WARM_UP_MAPPED = 500
BURST_S = 0.5
LEAST_CALLS = 2 * CONNECTIONS
#: Until a pool has learned what to preload, and has done so.
LEARN_S = 60.0
PANDAS = http_load.request("def version():\n    import pandas\n    return pandas.__version__\n")
METHOD = resident_rows.method("against", "inc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure of a burst, and whether more is better."""

    name: str
    unit: str
    more_is_better: bool = True

    def ratio(self, old: float, new: float) -> float:
        """Above 1 where the new side is better."""
        return new / old if self.more_is_better else old / new


def server_pid(side: Side) -> int:
    return side.server.process.pid


def nothing(_side: Side) -> None:
    """Check nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of call. ``warm_up`` does what is slow once, and returns about how many calls a
    second there are; ``burst`` makes so many, and returns a value for each of the figures;
    ``pid`` is the process that they cost, with all below it; ``check`` raises when the bursts
    were not what they are meant to be.
    """

    figures: tuple[Figure, ...]
    warm_up: Callable[[Side], float]
    burst: Callable[[Side, int], tuple[float, ...]]
    pid: Callable[[Side], int] = server_pid
    check: Callable[[Side], None] = nothing


@dataclass(slots=True)
class Bursts:
    """All bursts of one side: the figures of each, and their total cost."""

    calls: int = 0
    values: list[tuple[float, ...]] = field(default_factory=list)
    costs: Costs = field(default_factory=process_costs.none)


def saturated(what: str, data: bytes) -> Kind:
    """Saturate the server with 16 connections."""

    def warm_up(side: Side) -> float:
        return http_load.saturate(side.address, data, CONNECTIONS, WARM_UP_S).rate

    def burst(side: Side, calls: int) -> tuple[float, ...]:
        return (http_load.saturate(side.address, data, CONNECTIONS, calls=calls).rate,)

    figure = Figure(name=f"{what} over /execute, {CONNECTIONS} connections", unit="/s")
    return Kind(figures=(figure,), warm_up=warm_up, burst=burst)


def one_by_one() -> Kind:
    """No-ops on one connection, one after the other."""

    def warm_up(side: Side) -> float:
        return http_load.one_by_one(side.address, http_load.NOOP, WARM_UP_S).rate

    def burst(side: Side, calls: int) -> tuple[float, ...]:
        return (_alone(side, http_load.NOOP, calls)[0],)

    figure = Figure(
        name="median latency of a no-op call, 1 connection", unit="ms", more_is_better=False
    )
    return Kind(figures=(figure,), warm_up=warm_up, burst=burst)


def preloaded() -> Kind:
    """Calls that import pandas, once the pool has learned that they do."""

    def is_preloaded(side: Side) -> bool:
        with http_load.connected(side.address, 1) as (one,):
            one.call(PANDAS)
            one.check()
            return bool(one.body()["receipt"]["preloaded"])

    def warm_up(side: Side) -> float:
        def finds_pandas_preloaded() -> bool:
            return is_preloaded(side)

        until(finds_pandas_preloaded, LEARN_S)
        return http_load.one_by_one(side.address, PANDAS, WARM_UP_S).rate

    def burst(side: Side, calls: int) -> tuple[float, ...]:
        return _alone(side, PANDAS, calls)

    def check(side: Side) -> None:
        assert is_preloaded(side), "pandas is no longer preloaded"

    what = "a call that finds pandas preloaded, 1 connection"
    figures = (
        Figure(name=f"median latency of {what}", unit="ms", more_is_better=False),
        Figure(name="such calls, 1 connection", unit="/s"),
    )
    return Kind(figures=figures, warm_up=warm_up, burst=burst, check=check)


def _alone(side: Side, data: bytes, calls: int) -> tuple[float, float]:
    """Milliseconds of the median call at one connection, and calls a second."""
    # Warm-up calls would not be counted, but add to the costs.
    load = http_load.one_by_one(side.address, data, calls=calls, warm_up=0)
    return statistics.median(load.latencies) * 1e3, load.rate


def mapped() -> Kind:
    """Run `Pool.map` in a process of the side's own Python."""

    def warm_up(side: Side) -> float:
        side.bursts.run(WARM_UP_MAPPED)
        return WARM_UP_MAPPED / side.bursts.run(WARM_UP_MAPPED)

    def burst(side: Side, calls: int) -> tuple[float, ...]:
        return (calls / side.bursts.run(calls),)

    def pid(side: Side) -> int:
        return side.bursts.process.pid

    figure = Figure(name="Pool.map of isolated no-ops", unit="/s")
    return Kind(figures=(figure,), warm_up=warm_up, burst=burst, pid=pid)


#: In this order: rows that teach a server to preload come last.
ROWS: dict[str, Kind] = {
    "throughput": saturated("isolated no-op calls", http_load.NOOP),
    "latency": one_by_one(),
    "map": mapped(),
    "resident": saturated("method calls of an instance", METHOD),
    "pandas": preloaded(),
}


def measure(
    kind: Kind, old: Side, new: Side, pairs: int, say: Callable[[str], None]
) -> tuple[Bursts, Bursts]:
    """All pairs of one row: the old side's bursts and the new one's."""
    name = kind.figures[0].name
    say(f"{name}: warming up")
    slower = min(kind.warm_up(side) for side in (old, new))
    calls = max(LEAST_CALLS, round(slower * BURST_S))
    found = {old: Bursts(), new: Bursts()}

    def burst(side: Side) -> None:
        bursts = found[side]
        before = process_costs.settled(kind.pid(side))
        bursts.values.append(kind.burst(side, calls))
        after = process_costs.settled(kind.pid(side))
        bursts.calls += calls
        bursts.costs = process_costs.added(bursts.costs, process_costs.since(before, after))

    for number in range(pairs):
        say(f"{name}: pair {number + 1} of {pairs}")
        in_turn(number, lambda: burst(old), lambda: burst(new))
    for side in (old, new):
        kind.check(side)
    return found[old], found[new]
