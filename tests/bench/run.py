"""``python tests/bench/run.py``: measure every row, print the table, write the JSON.

Rows follow each other, so that no two load the machine at once; within a row, what is
measured and its reference take turns. Everything that is started is stopped, rows that
cannot be measured are reported as such, and then the exit status is 1. Targets that are
not met do not change it: it depends on the machine.
"""

import argparse
import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT / "tests")]

from bench import (  # noqa: E402 - found only now
    app_fault_rows,
    app_rows,
    app_size_rows,
    call_rows,
    http_rows,
    pool_rows,
    queue_rows,
    resident_rows,
    watched_rows,
)
from bench.context import Bench  # noqa: E402
from bench.figures import Failed, Row, keep, machine, show  # noqa: E402
from rich.console import Console  # noqa: E402

#: In this order: rows that load the server come before rows that measure its memory.
ROWS: dict[str, Callable[[Bench], Row | list[Row]]] = {
    "throughput": http_rows.throughput,
    "latency": http_rows.latency,
    "watched": watched_rows.cost,
    "python-calls": call_rows.counts,
    "map": pool_rows.maps,
    "resident": resident_rows.calls,
    "death-pool": pool_rows.death,
    "death-http": http_rows.death,
    "death-resident": resident_rows.death,
    "time-limit": pool_rows.overshoot,
    "pandas": http_rows.second_import,
    "ping": http_rows.ping,
    "queue": queue_rows.overhead,
    "array": pool_rows.arrays,
    "app": app_rows.rates,
    "app-workers": app_rows.two_workers,
    "app-deaths": app_fault_rows.deaths,
    "app-limit": app_fault_rows.overrun,
    "app-ping": app_fault_rows.ping,
    "app-worker-memory": app_size_rows.worker_memory,
    "app-server-memory": app_size_rows.server_memory,
    "app-isolation": app_size_rows.isolation,
    "app-unpacking": app_size_rows.unpacking,
    "app-start": app_size_rows.start,
    "server-memory": http_rows.server_memory,
    "spare-memory": http_rows.spare_memory,
}


def environments(bench: Bench) -> list[Row]:
    """What `envs_bench` measures, in our form; it needs the network."""
    from bench import envs_bench, envs_http_rows

    found = envs_http_rows.rows(bench)
    for row in envs_bench.rows(rounds=bench.rounds, folder=bench.folder):
        if row.ratio is None or row.reference is None:
            continue
        limit = float(row.reach.split()[-1]) if row.reach else None
        found.append(
            Row(
                name=row.name,
                value=row.value,
                unit=row.unit,
                reference_name=row.reference_name,
                reference=row.reference,
                ratio=row.ratio,
                low=row.ratio,
                high=row.ratio,
                target=f"≤ {limit:g} ×" if limit else "",
                met=limit is None or row.ratio <= limit,
            )
        )
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure flashpool beside its references.")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default 5; 2 is quick")
    parser.add_argument("--only", action="append", choices=list(ROWS), help="may be repeated")
    parser.add_argument("--json", type=Path, default=ROOT / "bench-results" / "bench.json")
    parser.add_argument(
        "--environments", action="store_true", help="also builds of environments (network)"
    )
    given = parser.parse_args()
    if given.rounds < 1:
        parser.error("--rounds: at least 1")
    return given


def main() -> int:
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console(width=None if sys.stdout.isatty() else 150)
    facts = machine()
    if float(facts["load_before"]) > float(facts["cores"]) / 4:
        console.print(
            f"[yellow]The machine is busy (load {facts['load_before']}): figures will be off."
        )
    wanted = {name: row for name, row in ROWS.items() if not given.only or name in given.only}
    if given.environments:
        wanted["environments"] = environments
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flashpool-bench-")))
        status = stack.enter_context(console.status("starting"))
        bench = Bench(given.rounds, folder, stack, status.update)
        found = [row for name, measure in wanted.items() for row in measured(name, measure, bench)]
    show(console, found)
    keep(given.json, facts, given.rounds, found)
    console.print(f"{time.monotonic() - began:.0f} s, {given.rounds} rounds; {given.json}")
    return int(any(isinstance(row, Failed) for row in found))


def measured(
    name: str, measure: Callable[[Bench], Row | list[Row]], bench: Bench
) -> Iterator[Row | Failed]:
    """Measure a row; an error in one row does not prevent the others."""
    try:
        rows = measure(bench)
    except Exception as error:
        yield Failed(name=name, error=f"{type(error).__name__}: {error}"[:500])
        return
    yield from rows if isinstance(rows, list) else [rows]


if __name__ == "__main__":
    sys.exit(main())
