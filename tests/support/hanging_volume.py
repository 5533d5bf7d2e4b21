"""A volume that can be told to hang: a FUSE mount that shows a directory of the test's own.

    test --"hang"--> passthrough process: no operation is answered any more
         --"go on"-> all of them are

It needs root, /dev/fuse, and libfuse3, which Debian has as libfuse3-3; a test that asks for one
where these are missing is skipped. What waits for an answer cannot be killed, as on a network's
volume; when the mount is taken away, all of it gets an error.
"""

import contextlib
import ctypes.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from support import wants

_PROGRAM: Final = Path(__file__).with_name("passthrough.py")


class HangingVolume:
    """A mounted volume that can hang."""

    def __init__(self, folder: Path) -> None:
        self.behind, self.path = folder / "behind", folder / "mounted"
        self.behind.mkdir(parents=True)
        self.path.mkdir()
        self._process = subprocess.Popen(
            [sys.executable, str(_PROGRAM), str(self.behind), str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )
        self._hear("mounted")

    def _hear(self, word: str) -> None:
        assert self._process.stdout is not None
        told = self._process.stdout.readline().strip()
        assert told == word, f"the file system says {told!r} instead of {word!r}"

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._hear(word)

    def hang(self) -> None:
        """Answer nothing from now on."""
        self._say("hang")

    def go_on(self) -> None:
        """Answer all requests again, including those that waited."""
        self._say("go on")

    def close(self) -> None:
        """Answer waiting requests, then unmount."""
        with contextlib.suppress(OSError, ValueError):
            self.go_on()
        subprocess.run(["umount", "--lazy", str(self.path)], check=False, capture_output=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


@contextlib.contextmanager
def hanging_volume(folder: Path) -> Iterator[HangingVolume]:
    """Mount a volume below this folder, or skip the test and name what is missing."""
    if os.geteuid() != 0:
        raise wants.missing("root", "only root may mount")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise wants.missing("/dev/fuse", "the kernel offers no FUSE here")
    if ctypes.util.find_library("fuse3") is None:
        raise wants.missing("libfuse3-3", "there is no libfuse3.so.3")
    wants.program("umount")
    volume = HangingVolume(folder)
    try:
        yield volume
    finally:
        volume.close()
