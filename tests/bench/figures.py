"""A measured row beside its reference, and how rows are shown and kept.

Subject and reference are measured in turns, round by round; the ratio of a row is the
median of the rounds' ratios, so that a machine that slows down for a while slows both.
"""

import json
import os
import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure. ``ratio`` is value / reference, or value / target where the target itself
    is what is compared with; ``low`` and ``high`` are its extremes over the rounds.
    """

    name: str
    value: float
    unit: str
    reference_name: str
    reference: float
    ratio: float
    low: float
    high: float
    target: str
    met: bool
    detail: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A row that could not be measured."""

    name: str
    error: str


def compared(
    name: str,
    unit: str,
    values: list[float],
    reference_name: str,
    references: list[float],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    detail: dict[str, float] | None = None,
) -> Row:
    """A row from the rounds' values and references; the target is a ratio."""
    ratios = [value / reference for value, reference in zip(values, references, strict=True)]
    ratio = statistics.median(ratios)
    limit = at_least if at_most is None else at_most
    assert limit is not None
    return Row(
        name=name,
        value=statistics.median(values),
        unit=unit,
        reference_name=reference_name,
        reference=statistics.median(references),
        ratio=ratio,
        low=min(ratios),
        high=max(ratios),
        target=f"{'≥' if at_most is None else '≤'} {limit:g} ×",
        met=ratio >= limit if at_most is None else ratio <= limit,
        detail=detail or {},
    )


def limited(
    name: str,
    unit: str,
    values: list[float],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    worst: bool = False,
    detail: dict[str, float] | None = None,
) -> Row:
    """A row whose target is a number; with ``worst`` every single value has to meet it."""
    limit = at_least if at_most is None else at_most
    assert limit is not None
    judged = statistics.median(values)
    if worst:
        judged = min(values) if at_most is None else max(values)
    return Row(
        name=name,
        value=statistics.median(values),
        unit=unit,
        reference_name="the target",
        reference=limit,
        ratio=statistics.median(values) / limit,
        low=min(values) / limit,
        high=max(values) / limit,
        target=f"{'≥' if at_most is None else '≤'} {limit:g} {unit}"
        + (", always" if worst else ""),
        met=judged >= limit if at_most is None else judged <= limit,
        detail=detail or {},
    )


def percentile(values: list[float], fraction: float) -> float:
    """Return the value that this share of values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


def show(console: Console, rows: list[Row | Failed]) -> None:
    """Print the table."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("figure", ratio=1)
    for heading in ("value", "reference", "ratio", "rounds", "target"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("met")
    for row in rows:
        if isinstance(row, Failed):
            table.add_row(row.name, "", "", "", "", "", f"[red]not measured: {row.error}")
            continue
        table.add_row(
            row.name,
            f"{number(row.value)} {row.unit}",
            f"{number(row.reference)} {row.unit}",
            f"{row.ratio:.2f}",
            f"{row.low:.2f} – {row.high:.2f}",
            row.target,
            "[green]yes" if row.met else "[red]no",
        )
    console.print(table)
    for row in rows:
        if isinstance(row, Row):
            more = ", ".join(f"{name} {number(value)}" for name, value in row.detail.items())
            console.print(f"[dim]{row.name}: against {row.reference_name}. {more}", highlight=False)


def number(value: float) -> str:
    """Format with three significant digits."""
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.3g}"


def machine() -> dict[str, str | float]:
    """Describe the machine."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "kernel": platform.release(),
        "python": sys.version.split()[0],
        "load_before": round(os.getloadavg()[0], 2),
    }


def keep(path: Path, facts: dict[str, str | float], rounds: int, rows: list[Row | Failed]) -> None:
    """Write the JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": facts,
        "rounds": rounds,
        "rows": [asdict(row) for row in rows],
    }
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")
