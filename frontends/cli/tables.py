"""Formats facts about a server as rows and tables of text."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any, Final

import click

#: Columns if the output is not a terminal.
_WIDTH: Final = 160
_DIGEST: Final = 12


def print_table(headings: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
    """Print rows below headings, as wide as the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    named = tuple(headings)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(named))
    for heading in named:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    terminal, text = Console(), io.StringIO()
    Console(file=text, width=terminal.width if terminal.is_terminal else _WIDTH).print(table)
    click.echo(text.getvalue().rstrip())


def plain(text: str) -> str:
    """Replace control characters of a text that user code chose."""
    return "".join(
        one if one.isprintable() or one == "\n" else "\N{REPLACEMENT CHARACTER}" for one in text
    )


def call_row(call: dict[str, Any]) -> tuple[str, ...]:
    """Return the row of a call: id, function, state, seconds, pid, environment, the client's id."""
    label = call["label"] if not call["instance"] else f"{call['label']} of {call['instance']}"
    return (
        call["id"],
        label,
        call["outcome"] or call["state"],
        f"{call['age_s']:.2f}",
        str(call["pid"] or ""),
        (call["environment"] or "")[:_DIGEST],
        call["request_id"],
    )


def summary(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return names and values that summarise the document of ``/stats``."""
    slots, queue = found.get("slots") or {}, found.get("queue") or {}
    state = "drains" if found.get("draining") else "ready" if found.get("ready") else "not ready"
    if reason := found.get("unfit"):
        state = f"{state}: {reason}"
    rows = [
        ("state", state),
        ("slots", f"{slots.get('busy', 0)} of {slots.get('total', 0)} busy"),
        ("queue", _queue(queue)),
        ("calls", f"{_number(found.get('calls'))}: {_counts(found.get('outcomes'))}"),
    ]
    for phase, times in (found.get("latency") or {}).items():
        if isinstance(times, dict) and "p50_s" in times:
            shown = (f"{name[:-2]} {1000 * times[name]:.1f} ms" for name in _percentiles(times))
            rows.append((f"time: {phase}", ", ".join(shown)))
    rows += [
        ("zygotes", str(len(found.get("zygotes") or []))),
        ("instances", str(len(found.get("instances") or []))),
        ("GPUs", _gpus(found.get("gpus") or {})),
        *_environments(found.get("stores") or []),
        *_jobs(found.get("jobs")),
    ]
    return rows


def _environments(stores: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [("environments", _store(one)) for one in stores]


def _store(store: dict[str, Any]) -> str:
    counts = (("built here", "builds"), ("failed", "failed_builds"), ("evicted", "evictions"))
    done = ", ".join(f"{what} {store.get(name, 0)}" for what, name in counts)
    return f"{_or_unknown(store.get('environments'))} in {store.get('root')}; {done}"


def _or_unknown(count: int | None) -> str:
    return "not counted yet" if count is None else str(count)


def _jobs(jobs: dict[str, int] | None) -> list[tuple[str, str]]:
    if not jobs:
        return []
    names = ("running", "taken", "done", "failed")
    counts = ", ".join(f"{jobs.get(name, 0)} {name}" for name in names)
    return [("jobs", f"{counts}; reports waiting: {jobs.get('reports_waiting', 0)}")]


def _percentiles(times: dict[str, Any]) -> list[str]:
    return [name for name in ("p50_s", "p90_s", "p95_s", "p99_s") if times.get(name) is not None]


def _queue(queue: dict[str, Any]) -> str:
    oldest = queue.get("oldest_age_s")
    waits = "" if oldest is None else f", the oldest for {oldest:.1f} s"
    return f"{queue.get('depth', 0)} wait{waits}; refused: {queue.get('refused', 0)}"


def _number(calls: object) -> str:
    if isinstance(calls, dict):
        return str(calls.get("total", sum(one for one in calls.values() if isinstance(one, int))))
    return str(calls or 0)


def _counts(outcomes: object) -> str:
    if not isinstance(outcomes, dict) or not outcomes:
        return "none yet"
    return ", ".join(f"{name} {number}" for name, number in outcomes.items())


def _gpus(gpus: dict[str, Any]) -> str:
    if not gpus.get("total"):
        return "none"
    return f"{gpus.get('usable', 0)} of {gpus['total']} usable, {gpus.get('waiting', 0)} calls wait"
