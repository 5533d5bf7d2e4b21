"""``flashpool settings``: the table of settings, for people and for programs."""

from __future__ import annotations

import io
import textwrap
from typing import Any, Final

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from flashpool.frontends.settings.field import Setting
from flashpool.frontends.settings.route_patterns import RouteRules
from flashpool.frontends.settings.table import Settings, table, variable

#: Width if the output is not a terminal, and the least width of the table.
_FILE_WIDTH: Final = 80
_TABLE_WIDTH: Final = 110


def chosen(settings: Settings, *, changed: bool) -> dict[str, Setting]:
    """Return all rows by field name, or only those whose value is not the default."""
    rows = table()
    if not changed:
        return rows
    return {
        name: row
        for name, row in rows.items()
        if settings.origins[name] != "default"
        and getattr(settings, name) != row.kind.parse(row.default())
    }


def as_json(settings: Settings, *, changed: bool = False) -> str:
    """Return a JSON object: variable -> value, default, origin, meaning, accepted values."""
    rows = {
        variable(name): {
            "value": _value(settings, name, row),
            "default": row.default(),
            "origin": settings.origins[name],
            "meaning": row.meaning,
            "accepts": row.kind.accepts,
        }
        for name, row in chosen(settings, changed=changed).items()
    }
    return msgspec.json.format(msgspec.json.encode(rows), indent=2).decode()


def as_table(settings: Settings, *, changed: bool = False) -> str:
    """Return a table, with colours for a terminal; a list if the terminal is narrow."""
    terminal = Console()
    width = terminal.width if terminal.is_terminal else _FILE_WIDTH
    if width < _TABLE_WIDTH:
        return as_list(settings, width, changed=changed)
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    rows.add_column("variable", no_wrap=True)
    for heading in ("value", "default", "from"):
        rows.add_column(heading, overflow="fold")
    rows.add_column("what it does", ratio=1)
    for name, row in chosen(settings, changed=changed).items():
        origin = settings.origins[name]
        rows.add_row(
            variable(name),
            _shown(_value(settings, name, row)),
            row.default(),
            origin,
            f"{row.meaning} Accepted: {row.kind.accepts}.",
            style="bold" if origin == "environment" else None,
        )
    text = io.StringIO()
    Console(file=text, width=width, force_terminal=terminal.is_terminal).print(rows)
    return text.getvalue().rstrip()


def as_list(settings: Settings, width: int, *, changed: bool = False) -> str:
    """Return a paragraph for each setting."""
    parts = []
    for name, row in chosen(settings, changed=changed).items():
        value, origin = _shown(_value(settings, name, row)), settings.origins[name]
        of = "the default" if origin == "default" else f"from {origin}; default: {row.default()}"
        meaning = f"{row.meaning} Accepted: {row.kind.accepts}."
        folded = textwrap.fill(
            meaning, max(width, 30), initial_indent="    ", subsequent_indent="    "
        )
        parts.append(f"{variable(name)} = {value} ({of})\n{folded}")
    return "\n".join(parts)


def _value(settings: Settings, name: str, row: Setting) -> Any:
    value = getattr(settings, name)
    if row.secret:
        return "(set)" if value else None
    return str(value) if isinstance(value, RouteRules) else value


def _shown(value: Any) -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        ", ".join(value)
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
