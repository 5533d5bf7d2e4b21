"""Follows a page as a reader does: its files, steps and servers, in their order, in an empty HOME.

    Following(page, folder)  --file-->    folder/work/NAME
                             --cells-->   one notebook, when the page has ended
                             --step-->    bash, in folder/work; `output` compares what it printed
                             --server-->  bash, until the page ends; waits until its port answers

The folder of the reader's commands looks like a checkout with `.venv`. Ports 8000 to 8099 are
replaced with free ones, so that several pages can be followed on one machine at once.
"""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from support.waiting import PATIENCE

from .pages import ROOT, Block, Page

STEP_LIMIT_S: Final = 120 * PATIENCE
SERVER_LIMIT_S: Final = 60 * PATIENCE
_PORT: Final = re.compile(r"\b80\d\d\b")
#: Variables of the machine's user and of other servers, which would change what a page shows.
_HIDDEN: Final = ("FLASH", "RUNPOD", "XDG_", "VIRTUAL_ENV", "PYTHON", "CUDA_", "NVIDIA_")
#: What `make run` starts, without the installation before it.
_MAKE_RUN: Final = (re.compile(r"\bmake run\b"), "flashpool serve lb")
#: A notebook without cells, and a cell that has not run.
_NOTEBOOK: Final = {"metadata": {}, "nbformat": 4, "nbformat_minor": 5}
_EMPTY: Final[dict[str, object]] = {"metadata": {}, "execution_count": None, "outputs": []}


@dataclass(slots=True)
class _Cell:
    """A cell of the page's notebook, and the output that the page shows for it."""

    block: Block
    text: str
    expected: str = ""


class Following:
    """One reader on the way through one page."""

    def __init__(
        self,
        page: Page,
        folder: Path,
        variables: Mapping[str, str],
        links: Mapping[str, Path] | None = None,
    ) -> None:
        """``links``: what the reader has made before, such as virtualenvs, by name."""
        self._page = page
        self._work = folder / "work"
        self._ports: dict[str, str] = {}
        self._servers: list[subprocess.Popen[bytes]] = []
        #: What the last step printed; None after a cell.
        self._printed: str | None = ""
        self._cells: list[_Cell] = []
        (folder / "home").mkdir(parents=True)
        self._work.mkdir()
        has = {name: ROOT / name for name in ("docs", "examples", "tests")}
        for name, path in {**has, ".venv": Path(sys.prefix), **(links or {})}.items():
            (self._work / name).symlink_to(path)
        self._environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith(_HIDDEN)},
            "HOME": str(folder / "home"),
            "PATH": f"{self._work}/.venv/bin:{os.environ['PATH']}",
            "FLASHPOOL_PORT": self._port("8000"),
            "FLASHPOOL_ADMIN_PORT": self._port("8001"),
            **variables,
        }

    def go(self) -> None:
        """Follow the whole page; raise AssertionError where it is wrong."""
        try:
            for block in self._page.blocks:
                with self._at(block):
                    self._take(block)
            if self._cells:
                self._run_notebook()
        finally:
            self._stop()

    @contextlib.contextmanager
    def _at(self, block: Block) -> Iterator[None]:
        try:
            yield
        except (AssertionError, subprocess.TimeoutExpired) as error:
            where = f"{self._page.path.relative_to(ROOT)}:{block.line}"
            raise AssertionError(f"{where}: {error}\n{self._logs()}") from error

    def _take(self, block: Block) -> None:
        text = self._with_ports(block.text)
        if block.mark == "file":
            path = self._work / block.about
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        elif block.mark == "step":
            self._printed = self._run(text)
        elif block.mark == "server":
            self._serve(text, int(self._with_ports(block.about)))
        elif block.mark == "cells":
            self._cells.append(_Cell(block, text))
            self._printed = None
        elif block.mark == "output" and self._printed is None:
            self._cells[-1].expected = text
        elif block.mark == "output":
            compare(text, self._printed or "")

    def _run(self, text: str) -> str:
        done = subprocess.run(
            ["bash", "-eu", "-c", text],
            cwd=self._work,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=STEP_LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, f"exits with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def _run_notebook(self) -> None:
        """Run the cells of the page in one kernel, and compare what each prints."""
        path = self._work / "page.ipynb"
        cells = [
            {"cell_type": "code", "id": f"cell-{n}", "source": cell.text, **_EMPTY}
            for n, cell in enumerate(self._cells)
        ]
        path.write_text(json.dumps({"cells": cells, **_NOTEBOOK}), "utf-8")
        self._run(f"jupyter execute --inplace {path.name}")
        executed = json.loads(path.read_text("utf-8"))["cells"]
        for cell, done in zip(self._cells, executed, strict=True):
            with self._at(cell.block):
                texts = ["".join(output.get("text", "")) for output in done["outputs"]]
                compare(cell.expected, "".join(texts))

    def _serve(self, text: str, port: int) -> None:
        pattern, program = _MAKE_RUN
        environ = dict(self._environ)
        if _answers(int(self._port("8001"))):  # the admin port of an earlier server
            environ["FLASHPOOL_ADMIN_PORT"] = "0"
        with self._log(len(self._servers)).open("wb") as log:
            server = subprocess.Popen(
                ["bash", "-eu", "-c", pattern.sub(program, text)],
                cwd=self._work,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._servers.append(server)
        deadline = time.monotonic() + SERVER_LIMIT_S
        while not _answers(port):
            assert server.poll() is None, f"the server exits with {server.returncode}"
            assert time.monotonic() < deadline, f"nothing listens on port {port}"
            time.sleep(0.05)

    def _stop(self) -> None:
        # In reverse order, each until it has exited: a worker deregisters from its platform.
        while self._servers:
            server = self._servers.pop()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(STEP_LIMIT_S)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(server.pid, signal.SIGKILL)
                server.wait()

    def _with_ports(self, text: str) -> str:
        return _PORT.sub(lambda found: self._port(found[0]), text)

    def _port(self, named: str) -> str:
        if named not in self._ports:
            self._ports[named] = str(_free_port())
        return self._ports[named]

    def _log(self, server: int) -> Path:
        return self._work.parent / f"server-{server}.log"

    def _logs(self) -> str:
        paths = [self._log(number) for number in range(len(self._servers))]
        return "".join(f"{path.name}:\n{path.read_text(errors='replace')}" for path in paths)


def compare(expected: str, printed: str) -> None:
    """Each line of the expected text must be there, in order; several may match one line."""
    lines = printed.splitlines()
    for wanted in expected.splitlines():
        pattern = re.compile(".*".join(re.escape(part) for part in wanted.split("...")))
        while lines and not pattern.fullmatch(lines[0]):
            lines.pop(0)
        assert lines, f"does not print {wanted!r}, but:\n{printed}"


def _free_port() -> int:
    # Below the kernel's ephemeral ports, so that no connection takes the port before the page.
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True
