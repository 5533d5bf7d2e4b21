"""The table of the differential tests: how runs of a program compared with a plain script.

A test hands its row over as a property of its report, so that the table is complete
whatever process the test ran in.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

PROPERTY: Final = "differential"
PLAIN: Final = "plain"
COLUMNS: Final = (PLAIN, "cold", "warm", "many", "parallel", "instance")
LEGEND: Final = (
    "ok: as the plain script; ok*: as well, in a process that had imported modules before; "
    "-: not run. Otherwise: what differed."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A program, and for each form what was wrong (nothing: an empty list)."""

    name: str
    group: str
    problems: dict[str, list[str]]
    #: Forms in which the last run found its modules preloaded.
    preloaded: list[str]

    @property
    def wrong(self) -> dict[str, list[str]]:
        return {form: problems for form, problems in self.problems.items() if problems}

    def cell(self, form: str) -> str:
        if form not in self.problems:
            return "-"
        kinds = dict.fromkeys(problem.partition(":")[0] for problem in self.problems[form])
        return ", ".join(kinds) or ("ok*" if form in self.preloaded else "ok")

    def as_property(self) -> tuple[str, str]:
        return PROPERTY, json.dumps(asdict(self))


def rows_of(reports: Iterable[Any]) -> list[Row]:
    """The rows that reports of tests carry, by group and name."""
    texts = {
        value
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == PROPERTY
    }
    rows = [Row(**json.loads(text)) for text in texts]
    return sorted(rows, key=lambda row: (row.group, row.name))


def as_text(rows: list[Row]) -> str:
    """The table, then what differed, at length."""
    cells = [["group", "program", *COLUMNS]]
    cells += [[row.group, row.name, *map(row.cell, COLUMNS)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
    wrong = [row for row in rows if row.wrong]
    details = [
        f"{row.name}, {form}: {problem}"
        for row in wrong
        for form, problems in row.wrong.items()
        for problem in problems
    ]
    said = f"{len(rows)} programs, {len(rows) - len(wrong)} of them right in every form"
    return "\n".join([*table, "", LEGEND, said, "", *details, ""])


def summarize(terminal: Any, path: str | None) -> None:
    """Print the table at the end of a test run, and write it where that is asked for."""
    rows = rows_of(report for reports in terminal.stats.values() for report in reports)
    if not rows:
        return
    text = as_text(rows)
    terminal.section("differential")
    if path:
        Path(path).write_text(text)
        terminal.write_line(text)
        return
    wrong = [row for row in rows if row.wrong]
    terminal.write_line(as_text(wrong) if wrong else f"{len(rows)} programs, all of them right")
