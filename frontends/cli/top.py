"""``flashpool top``: the calls of a server, live, on a terminal.

    every second: GET /stats, /calls --> `View` --> the screen
    a key         --> `View` moves, sorts, asks for confirmation, or returns a call to cancel

`View` decides what is shown, without using the terminal.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .tables import call_row, plain, summary

if TYPE_CHECKING:
    from flashpool.frontends.admin.client import AdminClient

#: Columns of the table, by any of which calls can be sorted.
_COLUMNS: Final = ("id", "function", "state", "seconds", "pid", "environment")
_UP: Final = ("\x1b[A", "k")
_DOWN: Final = ("\x1b[B", "j")
_BEHIND: Final = 3.0


class View:
    """The contents of the screen, and what keys change."""

    def __init__(self) -> None:
        self.stats: dict[str, Any] = {}
        self.calls: list[dict[str, Any]] = []
        self.sort = "seconds"
        self.reverse = True
        #: The id of the selected call; the id of the call whose cancellation waits for
        #: confirmation.
        self.chosen: str | None = None
        self.asked: str | None = None
        self.message = ""
        self.at = time.monotonic()

    def update(self, stats: dict[str, Any], calls: list[dict[str, Any]]) -> None:
        """Store the server's latest answer."""
        self.stats, self.calls = stats, [one for one in calls if one["state"] != "ended"]
        self.at = time.monotonic()
        self._keep_choice()

    def rows(self) -> list[dict[str, Any]]:
        """Return the calls in the chosen order."""
        column = _COLUMNS.index(self.sort)

        def key(call: dict[str, Any]) -> Any:
            if self.sort == "seconds":
                return call["age_s"]
            return call["number"] if self.sort == "id" else call_row(call)[column]

        return sorted(self.calls, key=key, reverse=self.reverse)

    def _keep_choice(self) -> None:
        ids = [one["id"] for one in self.rows()]
        if self.chosen not in ids:
            self.chosen = ids[0] if ids else None
        if self.asked not in ids:
            self.asked = None

    def press(self, key: str) -> str | None:
        """Handle a key; return the id of a call to cancel if the key confirms that.

        Raises:
            EOFError: the key quits.
        """
        if self.asked is not None:
            asked, self.asked = self.asked, None
            self.message = ""
            return asked if key == "y" else None
        if key in ("q", "\x03"):
            raise EOFError
        if key == "s":
            self.sort = _COLUMNS[(_COLUMNS.index(self.sort) + 1) % len(_COLUMNS)]
        elif key == "r":
            self.reverse = not self.reverse
        elif key in _UP or key in _DOWN:
            self._move(-1 if key in _UP else 1)
        elif key == "x" and self.chosen is not None:
            self.asked = self.chosen
        return None

    def _move(self, step: int) -> None:
        ids = [one["id"] for one in self.rows()]
        if ids:
            at = ids.index(self.chosen) if self.chosen in ids else 0
            self.chosen = ids[min(max(at + step, 0), len(ids) - 1)]

    def render(self, height: int, url: str) -> Group:
        """Return the screen, in about ``height`` lines."""
        head = Table.grid(padding=(0, 2))
        for name, value in summary(self.stats)[:4]:
            head.add_row(Text(name, style="dim"), Text(plain(value)))
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
        for name in _COLUMNS:
            mark = (" v" if self.reverse else " ^") if name == self.sort else ""
            table.add_column(name + mark, no_wrap=True, overflow="ellipsis")
        rows = self.rows()
        first = self._first(rows, room := max(3, height - 10))
        for call in rows[first : first + room]:
            cells = (Text(plain(cell)) for cell in call_row(call)[: len(_COLUMNS)])
            table.add_row(*cells, style="reverse" if call["id"] == self.chosen else None)
        return Group(Text(f"flashpool at {url}", style="bold"), head, table, self._footer())

    def _first(self, rows: list[dict[str, Any]], room: int) -> int:
        at = next((i for i, one in enumerate(rows) if one["id"] == self.chosen), 0)
        return max(0, at - room + 1)

    def _footer(self) -> Text:
        if self.asked is not None:
            return Text(f"Cancel {self.asked}? y: yes, any other key: no", style="bold red")
        behind = time.monotonic() - self.at
        if behind > _BEHIND:
            return Text(f"No news for {behind:.0f} s. {self.message}", style="bold yellow")
        return Text(self.message or "s sort  r reverse  x cancel  q quit", style="dim")


def run(client: AdminClient, every_s: float) -> None:
    """Show the screen until q is pressed; without a terminal, show it once."""
    view, console = View(), Console()
    view.update(client.get("/stats"), client.get("/calls")["calls"])
    if not (sys.stdin.isatty() and console.is_terminal):
        console.print(view.render(len(view.calls) + 12, client.url))
        return
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                live.update(view.render(console.height, client.url), refresh=True)
                due = time.monotonic() + every_s
                while (left := due - time.monotonic()) > 0:
                    if key := pressed(left):
                        _act(client, view, key)
                        live.update(view.render(console.height, client.url), refresh=True)
                _look(client, view)
        except (EOFError, KeyboardInterrupt):
            return


def _look(client: AdminClient, view: View) -> None:
    from flashpool.frontends.admin.client import AdminRefused, AdminUnreachable

    try:
        view.update(client.get("/stats"), client.get("/calls")["calls"])
        view.message = ""
    except (AdminRefused, AdminUnreachable, TimeoutError) as error:
        view.message = str(error)


def _act(client: AdminClient, view: View, key: str) -> None:
    from flashpool.frontends.admin.client import AdminRefused, AdminUnreachable

    if (call_id := view.press(key)) is None:
        return
    try:
        client.ask("DELETE", f"/calls/{call_id}")
        view.message = f"cancelled {call_id}"
    except (AdminRefused, AdminUnreachable, TimeoutError) as error:
        view.message = str(error)


@contextlib.contextmanager
def _keys() -> Iterator[Any]:
    """Provide a function that reads single keys; restore the terminal afterwards."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def pressed(wait_s: float) -> str:
        ready, _, _ = select.select([fd], [], [], wait_s)
        if not ready:
            return ""
        data = os.read(fd, 32).decode("utf-8", "replace")
        if not data:
            raise EOFError  # the terminal is gone
        return data if data.startswith("\x1b") else data[:1]

    tty.setcbreak(fd)
    try:
        yield pressed
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
