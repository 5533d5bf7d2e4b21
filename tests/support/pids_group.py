"""A control group that limits processes, where one can be created."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

#: Paths for cgroups of version 1 and of version 2.
_PLACES = (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup"))


class PidsGroup:
    """A group of processes with a limit on their total number of threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def take(self, pid: int) -> None:
        """Move a process into the group; its existing children stay where they are."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def allow_no_more(self) -> None:
        """Set the limit to the present number: no process or thread can be added."""
        (self.folder / "pids.max").write_text((self.folder / "pids.current").read_text())

    def allow_all(self) -> None:
        (self.folder / "pids.max").write_text("max")


@contextlib.contextmanager
def pids_group() -> Iterator[PidsGroup]:
    """A group for one test, which is skipped where no group can be created."""
    folder = next((place for place in _PLACES if (place / "cgroup.procs").exists()), _PLACES[0])
    folder /= f"flashpool-test-{os.getpid()}-{time.monotonic_ns()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"needs a control group of its own: {error}")
    if not (folder / "pids.max").exists():
        folder.rmdir()
        pytest.skip("needs the pids controller of control groups")
    group = PidsGroup(folder)
    try:
        yield group
    finally:
        group.allow_all()
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove the group once its processes, which others stop, have exited."""
    end = time.monotonic() + 30
    while True:
        try:
            folder.rmdir()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
