"""Two checkouts compared: the verdict on each figure, the tables, the JSON file.

A figure reaches its target if the upper end of its interval does: what is measured is then
compatible with it. A figure that does not may have been measured on a machine too busy for
it, so the profile can speak for it: a side that costs no more than a few page faults and
microseconds a call more than the other one is not slower by anything that could be seen.
"""

import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import medians, process_costs
from bench.against_rows import Bursts, Kind
from bench.figures import Failed, number
from bench.process_costs import Costs
from rich.console import Console
from rich.markup import escape
from rich.table import Table

#: How much more a call of the new side may cost, whatever the interval.
MORE_FAULTS = 3.0
MORE_CPU_US = 20.0

TOTAL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure of both sides, medians of their bursts. The ratios of the pairs are above 1
    where the new side is better; ``low`` to ``high`` encloses their median with probability
    ``coverage``.
    """

    row: str
    name: str
    unit: str
    old: float
    new: float
    ratio: float
    low: float
    high: float
    coverage: float
    target: float
    verdict: str
    ratios: list[float]

    @property
    def reached(self) -> bool:
        return self.verdict != "no"


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a call of a row costs one part of each side."""

    row: str
    part: str
    old_faults: float
    new_faults: float
    old_cpu_us: float
    new_cpu_us: float

    @property
    def more_faults(self) -> float:
        return self.new_faults - self.old_faults

    @property
    def more_cpu_us(self) -> float:
        return self.new_cpu_us - self.old_cpu_us


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One row: its figures, and the profile of each side's ``calls``, the total first."""

    figures: list[Figure]
    profile: list[Share]
    calls: int


def compared(row: str, kind: Kind, old: Bursts, new: Bursts, target: float) -> Compared:
    """Evaluate the bursts of a row."""
    shares = profile(row, old, new)
    found = []
    for at, figure in enumerate(kind.figures):
        olds, news = ([values[at] for values in side.values] for side in (old, new))
        ratios = [figure.ratio(*pair) for pair in zip(olds, news, strict=True)]
        median = medians.median(ratios)
        found.append(
            Figure(
                row=row,
                name=figure.name,
                unit=figure.unit,
                old=statistics.median(olds),
                new=statistics.median(news),
                ratio=median.value,
                low=median.low,
                high=median.high,
                coverage=median.coverage,
                target=target,
                verdict=verdict(median.high, target, shares[0]),
                ratios=ratios,
            )
        )
    return Compared(figures=found, profile=shares, calls=old.calls)


def profile(row: str, old: Bursts, new: Bursts) -> list[Share]:
    """A call's costs: all of them, then those of each part."""

    def share(part: str, of_old: process_costs.Cost, of_new: process_costs.Cost) -> Share:
        return Share(
            row=row,
            part=part,
            old_faults=of_old.faults / old.calls,
            new_faults=of_new.faults / new.calls,
            old_cpu_us=of_old.cpu_s / old.calls * 1e6,
            new_cpu_us=of_new.cpu_s / new.calls * 1e6,
        )

    parts: list[str] = list(process_costs.PARTS)
    olds, news = _whole(old.costs), _whole(new.costs)
    return [share(part, olds[part], news[part]) for part in (TOTAL, *parts)]


def _whole(costs: Costs) -> Costs:
    return {TOTAL: process_costs.total(costs), **costs}


def verdict(high: float, target: float, whole: Share) -> str:
    """On a figure whose interval ends at ``high``."""
    if high >= target:
        return "yes"
    if whole.more_faults <= MORE_FAULTS and whole.more_cpu_us <= MORE_CPU_US:
        return "yes, by the profile"
    return "no"


def show(console: Console, rows: list[Compared | Failed]) -> None:
    """Print both tables."""
    figures = _table("figure", "old", "new", "ratio", "95 % interval", "target")
    figures.add_column("reached")
    costs = _table("a call of", "part", "faults: old", "new", "more", "CPU µs: old", "new", "more")
    for row in rows:
        if isinstance(row, Failed):
            figures.add_row(row.name, "", "", "", "", "", f"[red]not measured: {escape(row.error)}")
            continue
        for one in row.figures:
            figures.add_row(
                one.name,
                f"{number(one.old)} {one.unit}",
                f"{number(one.new)} {one.unit}",
                f"{one.ratio:.3f}",
                f"{one.low:.3f} – {one.high:.3f}",
                f"≥ {one.target:g}",
                f"[green]{one.verdict}" if one.reached else f"[red]{one.verdict}",
            )
        for share in row.profile:
            costs.add_row(
                f"{share.row}, mean of {row.calls}" if share.part == TOTAL else "",
                share.part,
                f"{share.old_faults:.1f}",
                f"{share.new_faults:.1f}",
                f"{share.more_faults:+.1f}",
                f"{share.old_cpu_us:.0f}",
                f"{share.new_cpu_us:.0f}",
                f"{share.more_cpu_us:+.0f}",
            )
    console.print(figures)
    covers = [one.coverage for row in rows if isinstance(row, Compared) for one in row.figures]
    if covers and min(covers) < medians.CONFIDENCE:
        console.print(
            f"[yellow]So few pairs: the intervals, from the smallest ratio to the largest, hold"
            f" the median with a probability of {min(covers):.0%} only."
        )
    if costs.row_count:
        console.print()
        console.print(costs)


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, ratio=1)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def differing(old: dict[str, str], new: dict[str, str]) -> dict[str, list[str | None]]:
    """Packages whose versions differ between the sides, or which only one side has."""
    names = sorted({*old, *new})
    return {
        name: [old.get(name), new.get(name)] for name in names if old.get(name) != new.get(name)
    }


def keep(path: Path, head: dict[str, Any], rows: list[Compared | Failed]) -> None:
    """Write the JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    measured = [row for row in rows if isinstance(row, Compared)]
    document = {
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **head,
        "rows": [
            {**asdict(one), "reached": one.reached, "calls": row.calls}
            for row in measured
            for one in row.figures
        ],
        "profile": [asdict(share) for row in measured for share in row.profile],
        "not_measured": [asdict(row) for row in rows if isinstance(row, Failed)],
    }
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")
