"""A file system of a few megabytes, for tests that fill one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support import wants


@contextmanager
def small_disk(folder: Path, megabytes: int = 16) -> Iterator[Path]:
    """Mount a small disk at a new directory; skip the test where mounting is impossible."""
    if os.geteuid() != 0:
        raise wants.missing("root", "a small disk is mounted")
    folder.mkdir()
    argv = [
        wants.program("mount"),
        "-t",
        "tmpfs",
        "-o",
        f"size={megabytes}m",
        "flashpool-test",
        str(folder),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise wants.missing("the right to mount a tmpfs", done.stderr.strip())
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def filled(disk: Path, *, leaving: int) -> Iterator[None]:
    """Fill the disk except for this many bytes, until the block ends."""
    ballast = disk / "ballast"
    status = os.statvfs(disk)
    ballast.write_bytes(bytes(status.f_bavail * status.f_frsize - leaving))
    try:
        yield
    finally:
        ballast.unlink()
