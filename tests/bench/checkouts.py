"""Two checkouts side by side: the working tree as it is, and a commit.

Both are copied into a folder of the caller's and installed, not editable, each into a
virtualenv of its own, from its own lock, with the same interpreter. So they differ in their
sources and locks only, and what is edited meanwhile does not matter.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GIT_S = 60.0
#: Seconds for an installation, which may have to fetch packages.
INSTALL_S = 900.0


class Unusable(Exception):
    """There is nothing to compare; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    """``folder`` holds the sources, the virtualenv and all that is written while it runs."""

    name: str
    label: str
    folder: Path

    @property
    def source(self) -> Path:
        return self.folder / "source"

    @property
    def python(self) -> Path:
        return self.folder / "venv" / "bin" / "python"

    def variables(self) -> dict[str, str]:
        """Every directory that a server or a pool may write to is this checkout's own."""
        paths = {
            "HOME": "home",
            "TMPDIR": "tmp",
            "XDG_CACHE_HOME": "cache",
            "FLASHPOOL_LOCAL_DIR": "local",
            "FLASHPOOL_VOLUME": "volume",
        }
        for path in paths.values():
            (self.folder / path).mkdir(exist_ok=True)
        return {name: str(self.folder / path) for name, path in paths.items()}

    def packages(self) -> dict[str, str]:
        """The versions of installed packages."""
        command = [_uv(), "pip", "list", "--format=json", f"--python={self.python}"]
        listed = _output(command, GIT_S, TMPDIR=self.variables()["TMPDIR"])
        found: list[dict[str, Any]] = json.loads(listed)
        return {one["name"]: one["version"] for one in found}


def resolved(revision: str) -> str:
    """The full hash of a commit of this repository.

    Raises:
        Unusable: there is no such commit.
    """
    asked = _run(_git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"), GIT_S)
    if asked.returncode != 0:
        why = asked.stderr.strip() or "no such commit in this repository"
        raise Unusable(f"COMMIT={revision}: {why}")
    return asked.stdout.strip()


def of_commit(commit: str, folder: Path) -> Checkout:
    """Copy the files of the commit."""
    checkout = Checkout(
        name="old", label=_output(_git("log", "-1", "--format=%h %s", commit), GIT_S), folder=folder
    )
    checkout.source.mkdir(parents=True)
    archive = folder / "source.tar"
    _output(_git("archive", "--format=tar", f"--output={archive}", commit), GIT_S)
    with tarfile.open(archive) as files:
        # Python 3.10 and 3.11 have filters since some patch release; the archive is git's own.
        if hasattr(tarfile, "data_filter"):
            files.extractall(checkout.source, filter="data")
        else:
            files.extractall(checkout.source)
    archive.unlink()
    return checkout


def of_working_tree(folder: Path) -> Checkout:
    """Copy the files as they are now, except those that git ignores."""
    at = _output(_git("log", "-1", "--format=%h %s"), GIT_S)
    dirty = _output(_git("status", "--porcelain"), GIT_S)
    label = f"{at}, with uncommitted changes" if dirty else at
    checkout = Checkout(name="new", label=label, folder=folder)
    checkout.source.mkdir(parents=True)
    listed = _output(
        _git("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"), GIT_S
    )
    for name in filter(None, listed.split("\0")):
        path, copy = ROOT / name, checkout.source / name
        # A file of the index may be deleted; a repository inside this one is a folder.
        if path.is_file() or path.is_symlink():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy, follow_symlinks=False)
    return checkout


def install(checkout: Checkout, extra: Sequence[str]) -> None:
    """Make its virtualenv: flashpool, what its lock says, the group `bench`, extra packages.

    Raises:
        Unusable: uv cannot, with its words.
    """
    uv = _uv()
    # uv leaves its lock files there.
    directories = {
        "UV_PROJECT_ENVIRONMENT": str(checkout.folder / "venv"),
        "TMPDIR": checkout.variables()["TMPDIR"],
    }
    commands = [
        [
            *(uv, "sync", "--quiet", "--frozen", "--no-default-groups", "--group=bench"),
            *("--no-editable", f"--python={_interpreter()}", f"--project={checkout.source}"),
        ]
    ]
    if extra:
        commands.append([uv, "pip", "install", "--quiet", f"--python={checkout.python}", *extra])
    for command in commands:
        done = _run(command, INSTALL_S, **directories)
        if done.returncode != 0:
            words = done.stderr.strip()[-2000:]
            raise Unusable(f"{checkout.label} cannot be installed: {words}")


def _interpreter() -> str:
    """The interpreter that created the virtualenv of this process."""
    return str(getattr(sys, "_base_executable", None) or sys.executable)


def _uv() -> str:
    from uv import find_uv_bin

    return str(find_uv_bin())


def _git(*arguments: str) -> list[str]:
    return ["git", "-C", str(ROOT), *arguments]


def _output(command: list[str], seconds: float, **variables: str) -> str:
    done = _run(command, seconds, **variables)
    if done.returncode != 0:
        raise Unusable(f"{' '.join(command)}: {done.stderr.strip()[-2000:]}")
    return done.stdout.strip()


def _run(
    command: list[str], seconds: float, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """Run it in a session of its own. All it started ends with it, when this process is
    interrupted, too: nothing writes any more to a folder that is about to be deleted.
    """
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    ours = {"UV_PYTHON_DOWNLOADS": "never", "UV_SYSTEM_CERTS": "1"}
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, **ours, **variables},
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise Unusable(f"{' '.join(command)}: not done after {seconds:g} s") from error
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)
