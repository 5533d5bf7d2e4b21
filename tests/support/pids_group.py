"""A control group that bounds processes, where one can be had."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

#: Of version 1, and of version 2.
_PLACES = (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup"))


class PidsGroup:
    """Processes that may have so many threads together, and no more."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def take(self, pid: int) -> None:
        """Put a process into it; those that it has already stay where they are."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def allow_no_more(self) -> None:
        """What is there may stay; no process or thread may come."""
        (self.folder / "pids.max").write_text((self.folder / "pids.current").read_text())

    def allow_all(self) -> None:
        (self.folder / "pids.max").write_text("max")


@contextlib.contextmanager
def pids_group() -> Iterator[PidsGroup]:
    """One for a test, which is skipped where none can be made."""
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
    """Its processes are ended by whoever started them; that may take a moment."""
    end = time.monotonic() + 30
    while True:
        try:
            folder.rmdir()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
