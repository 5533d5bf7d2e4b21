"""An index, a volume and an observable uv, shared by servers that build environments."""

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from e2e.server import FLASHPOOL, Server, serving, until
from envs.conftest import Index

from flashpool.envs import EnvSettings
from flashpool.envs.uv_cli import find_uv

VERSION: Final = "def f():\n    import alpha\n    return alpha.version"

#: Records its arguments, waits where a test says so, then execs uv.
_WATCHED_UV: Final = """#!/bin/sh
case " $* " in
  *" pip compile "*) step=compile ;;
  *" pip install "*) step=install ;;
  *) step=other ;;
esac
echo "$$ $step $*" >>"{folder}/uv.log"
while [ -e "{folder}/hold-$step" ]; do sleep 0.02; done
exec "{uv}" "$@"
"""


@dataclass(frozen=True, slots=True)
class UvRun:
    """One run of uv."""

    pid: int
    step: str
    arguments: str

    @property
    def scratch(self) -> str:
        """The scratch directory of the build that this run belongs to."""
        found = re.search(r"/scratch/([^/ ]+)", self.arguments)
        return found[1] if found else ""


class World:
    """An index, a volume, and the variables of servers that use them."""

    def __init__(self, folder: Path) -> None:
        for name in ("index", "empty", "volume"):
            (folder / name).mkdir()
        self.folder = folder
        self.index = index = Index(folder / "index")
        index.add("alpha", "1.0")
        index.add("alpha", "2.0")
        index.add("beta", "1.0", "alpha>=1.0")
        index.add("quitter", "1.0", files={"now.py": "import os; os._exit(3)"})
        self.volume = folder / "volume"
        self.variables = {
            "FLASHPOOL_VOLUME": str(self.volume),
            "FLASHPOOL_LOCAL_DIR": str(folder / "local"),
            "FLASHPOOL_FIND_LINKS": str(folder / "index"),
            "FLASHPOOL_INDEX_URL": (folder / "empty").as_uri(),
            "FLASHPOOL_ENV_MIN_FREE_MB": "0",
            "FLASHPOOL_SLOTS": "4",
        }

    @contextlib.contextmanager
    def server(self, name: str = "server", **variables: str) -> Iterator[Server]:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        with serving(folder, **{**self.variables, **variables}) as server:
            yield server

    def command(self, *arguments: str, group: str = "envs") -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [FLASHPOOL, group, *arguments],
            env=self.environ(),
            capture_output=True,
            text=True,
            check=False,
        )

    def environ(self) -> dict[str, str]:
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("FLASHPOOL", "RUNPOD"))}
        return {**environ, **self.variables}

    # Observing uv.

    def watch_uv(self) -> None:
        """Make servers that start from now on use a uv whose runs `uv_runs` lists."""
        watched = self.folder / "uv"
        watched.write_text(_WATCHED_UV.format(folder=self.folder, uv=find_uv(EnvSettings())))
        watched.chmod(0o755)
        self.variables["FLASHPOOL_UV"] = str(watched)

    def uv_runs(self, step: str | None = None) -> list[UvRun]:
        """Return all runs of uv so far, or those of one step: compile, install or other."""
        path = self.folder / "uv.log"
        lines = path.read_text().splitlines() if path.exists() else []
        runs = [UvRun(int(pid), kind, rest) for pid, kind, rest in (x.split(" ", 2) for x in lines)]
        return [run for run in runs if step in (None, run.step)]

    @contextlib.contextmanager
    def holding(self, step: str) -> Iterator[None]:
        """Block uv from starting that step within the block."""
        gate = self.folder / f"hold-{step}"
        gate.touch()
        try:
            yield
        finally:
            gate.unlink(missing_ok=True)

    # The store.

    def stored(self, kind: str) -> list[str]:
        """Return the names in a directory of the store, such as ``envs`` or ``scratch``."""
        with contextlib.suppress(FileNotFoundError):
            return os.listdir(self.volume / "flashpool" / kind)
        return []

    def builders(self) -> list[int]:
        """Return the processes that hold a claim to build."""
        found = []
        for name in self.stored("claims"):
            with contextlib.suppress(OSError):
                owner = os.readlink(self.volume / "flashpool" / "claims" / name)
                found.append(int(owner.split("-")[1]))
        return found

    def finished(self) -> None:
        """Wait until all work after publication is done."""
        until(lambda: not self.stored("claims"), 30)


def processes_with(text: str) -> list[str]:
    """Return the command lines that contain the text."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                line = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
                if text in line:
                    found.append(line)
    return found


def busy_until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    """Poll without a pause, for states that last only milliseconds."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"still not so after {limit_s:g} s"
        time.sleep(0.001)
