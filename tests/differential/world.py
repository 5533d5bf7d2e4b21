"""Where programs run: variables of the server, its Python, and rows made a group at a time."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest
from differential.plain import Plain
from differential.programs import PROGRAMS
from differential.rows import make_rows
from differential.served import Served
from e2e.server import Server

from flashpool.pool.config import PoolConfig
from support.cells import Row

HERE: Final = Path(__file__).parent
HABITS: Final = HERE / "packages" / "habits"
THREADS: Final = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"),
    *("NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
)


def server_variables(folder: Path) -> dict[str, str]:
    """Of a server whose user has a home of their own, and nothing in it."""
    for name in ("home", "tmp", "volume"):
        (folder / name).mkdir()
    return {
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "LANG": "C.UTF-8",
        # The server shares the cores among its slots where these are not set.
        **dict.fromkeys(THREADS, "2"),
        # Calls get these where nobody has set them.
        **PoolConfig(worker_env=dict.fromkeys(THREADS, "2")).zygote_env(),
        "FLASHPOOL_VOLUME": str(folder / "volume"),
        "FLASHPOOL_LOCAL_DIR": str(folder / "local"),
        "FLASHPOOL_ENV_MIN_FREE_MB": "0",
        "FLASHPOOL_SLOTS": "4",
        # One for each program, as each imports other modules.
        "FLASHPOOL_PRELOAD_ZYGOTES": "1000",
        # As Python's own: the root logger's level in calls is the server's.
        "FLASHPOOL_LOG_LEVEL": "WARNING",
        # Every program has an instance, which is asked once.
        "FLASHPOOL_INSTANCE_IDLE_S": "1",
        "FLASHPOOL_START_TIMEOUT_S": "240",
        # A script's output is complete when the script has exited: wait for as much of a call.
        # (An answer that waits for less says so in `stdout`, and is not equal.)
        "FLASHPOOL_EXIT_ANSWER_S": "10",
    }


def remove_large(folder: Path) -> None:
    """What the server made for itself; scripts, directories of calls and its log stay."""
    for path in (folder / name for name in ("home", "tmp", "volume", "local")):
        if path.exists():
            shutil.rmtree(path)


def base_with_habits(folder: Path) -> Path:
    """A Python that has what ours has, and the modules of packages/habits."""
    make = [sys._base_executable, "-m", "venv", "--without-pip", folder]
    subprocess.run(make, check=True)
    python = folder / "bin" / "python"
    code = "import json, site; print(json.dumps(site.getsitepackages()))"
    ours, theirs = (
        json.loads(subprocess.run([name, "-c", code], check=True, capture_output=True).stdout)[0]
        for name in (sys.executable, python)
    )
    Path(theirs, "habits.pth").write_text(f"{HABITS / 'src'}\n{ours}\n")
    return python


class Rows:
    """Rows by program; all that have the same environment are made when the first is asked for."""

    def __init__(
        self,
        request: pytest.FixtureRequest,
        server: Server,
        folder: Path,
        variables: dict[str, str],
        dependencies: Mapping[str, tuple[str, ...]],
    ) -> None:
        self._asked = {
            item.callspec.params["name"]
            for item in request.session.items
            if item.path == request.path and hasattr(item, "callspec")
        }
        self._server = server
        self._folder = folder
        self._variables = variables
        #: What each group of programs requires.
        self._dependencies = dependencies
        #: For each environment: its rows, or the reason for having none.
        self._made: dict[tuple[str, ...], dict[str, Row] | Exception] = {}

    def __call__(self, name: str) -> Row:
        required = self._dependencies[PROGRAMS[name].group]
        if required not in self._made:
            try:
                self._made[required] = self._make(required)
            except Exception as error:
                self._made[required] = error
        made = self._made[required]
        if isinstance(made, Exception):
            raise AssertionError("the programs of this environment could not be run") from made
        return made[name]

    def _make(self, required: tuple[str, ...]) -> dict[str, Row]:
        folder = self._folder / f"environment-{len(self._made)}"
        served = Served(self._server, folder / "calls", list(required))
        plain = Plain(served.interpreter(), self._variables, folder / "scripts")
        chosen = [PROGRAMS[name] for name in PROGRAMS if name in self._asked]
        groups = {group for group, others in self._dependencies.items() if others == required}
        return make_rows([p for p in chosen if p.group in groups], plain, served)
