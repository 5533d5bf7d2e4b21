"""Interpreters for tests: virtualenvs of the Python that runs them, and another Python."""

import subprocess
import sys
from pathlib import Path

from flashpool.envs import EnvSettings
from flashpool.envs.uv_cli import find_uv
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
    """The newest Python of another version that uv finds here, and its path; skip without one."""
    for minor in range(14, 9, -1):
        version = f"3.{minor}"
        if minor != sys.version_info.minor and (path := installed(version)):
            return version, path
    raise wants.missing("another Python", "uv finds none of another version")


def installed(version: str) -> Path | None:
    """The Python that uv finds on this machine for a version, such as ``3.12`` or ``<3.13``."""
    find = [str(find_uv(EnvSettings())), "python", "find", "--no-python-downloads", "--no-project"]
    found = subprocess.run([*find, "--system", version], capture_output=True, text=True)
    return None if found.returncode else Path(found.stdout.strip())
