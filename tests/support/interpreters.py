"""Interpreters for tests: virtualenvs of the Python that runs them, and another Python."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from support import wants


def virtualenv(root: Path, *, at_start: str = "", **modules: str) -> Path:
    """Make one, without pip; its interpreter. ``at_start`` is code that runs whenever it starts.

    That code is a ``.pth`` file's, not ``sitecustomize``: distributions such as Debian have a
    module of that name in the standard library, which is found before the one of a virtualenv.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", root], check=True)
    (packages,) = root.glob("lib/python*/site-packages")
    if at_start:
        modules["run_at_start"] = at_start
        (packages / "run_at_start.pth").write_text("import run_at_start\n")
    for name, text in modules.items():
        (packages / f"{name}.py").write_text(text)
    return root / "bin" / "python"


def another_python() -> tuple[str, Path]:
    """Return the version and path of the newest installed Python of another version.

    It may be one that flashpool and uv do not find, before its folder is put on ``PATH``.
    """
    for minor in range(14, 9, -1):
        if minor != sys.version_info.minor and (path := installed(f"3.{minor}")):
            return f"3.{minor}", path
    raise wants.missing(
        "another Python", f"all are {sys.version_info.major}.{sys.version_info.minor}"
    )


@cache
def installed(version: str) -> Path | None:
    """Return a Python of that version, such as ``3.12``, from where `make` looks for one."""
    script = str(Path(__file__).with_name("find_python.sh"))
    environment = {**os.environ, "VERSION": version}
    found = subprocess.run(["bash", script], env=environment, capture_output=True, text=True)
    return None if found.returncode else Path(found.stdout.strip())
