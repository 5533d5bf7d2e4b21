"""What an environment costs a call over /execute; packages come from the index, once."""

import statistics
from collections.abc import Callable
from pathlib import Path

from bench import http_load
from bench.context import Bench, in_turn
from bench.figures import Row, limited
from bench.lb_server import serving, until

CALLS = 200
PANDAS_CALLS = 50
SMALL = {"dependencies": ["idna", "six"]}
LARGE = {"dependencies": ["pandas"]}
CODE = "def nothing():\n    return None\n"
IN_BASE = http_load.request(CODE)
IN_SMALL = http_load.request(CODE, **SMALL)
IN_LARGE = http_load.request(CODE, **LARGE)
PANDAS = http_load.request("def load():\n    import pandas\n    return None\n", **LARGE)


def rows(bench: Bench) -> list[Row]:
    """Calls in environments beside calls that need none, at one server and in turns."""
    folder = Path(bench.folder) / "envs-http"
    (folder / "volume").mkdir(parents=True)
    variables = {
        "FLASHPOOL_VOLUME": str(folder / "volume"),
        "FLASHPOOL_LOCAL_DIR": str(folder / "local"),
        "FLASHPOOL_ENV_MIN_FREE_MB": "0",
    }
    with (
        serving(folder, **variables) as server,
        http_load.connected(server.address, 1) as (one,),
    ):
        return [_hit(bench, one), _pandas(bench, one)]


def _hit(bench: Bench, one: http_load.Connection) -> Row:
    for request in (IN_SMALL, IN_BASE) * 10:
        one.call(request)
        one.check()
    above, base = _above(bench, one, "environment at hand", IN_SMALL, IN_BASE, CALLS)
    return limited(
        "a call in an environment that is there: above one in the base",
        "ms",
        above,
        at_most=0.2,
        detail={"in the base ms": statistics.median(base)},
    )


def _pandas(bench: Bench, one: http_load.Connection) -> Row:
    def preloaded() -> bool:
        one.call(PANDAS)
        one.check()
        return bool(one.body()["receipt"]["preloaded"])

    until(preloaded, 120)
    above, noops = _above(bench, one, "pandas", PANDAS, IN_LARGE, PANDAS_CALLS)
    return limited(
        "a later call that imports pandas, in an environment: above a no-op in it",
        "ms",
        above,
        at_most=10,
        detail={"no-op ms": statistics.median(noops)},
    )


def _above(
    bench: Bench, one: http_load.Connection, name: str, subject: bytes, reference: bytes, calls: int
) -> tuple[list[float], list[float]]:
    """For each round, the extra milliseconds of one over the other, and those of the other."""
    above: list[float] = []
    references: list[float] = []
    for number in bench.turns(name):
        took: dict[bytes, list[float]] = {subject: [], reference: []}

        def measure(data: bytes, into: dict[bytes, list[float]] = took) -> Callable[[], None]:
            def calls_of_it() -> None:
                into[data].append(one.call(data))
                one.check()

            return calls_of_it

        for turn in range(calls):
            in_turn(number + turn, measure(subject), measure(reference))
        references.append(statistics.median(took[reference]) * 1e3)
        above.append(statistics.median(took[subject]) * 1e3 - references[-1])
    return above, references
