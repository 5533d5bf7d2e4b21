"""Bytecode that imports write is whole, or is not there.

CPython before 3.12.8 and 3.13.1 does not look at how much of it a full disk has taken, and
publishes what was written: every later import of that module then fails, of any process and
for good. The server's own interpreter is shared by calls, and by much besides.

Environments that were built take none at all: they see to that themselves
(envs/building/in_environment/environment_start.py).
"""

from __future__ import annotations

import os
import sys

_WRITES_WHOLE = sys.version_info >= (3, 13, 1) or (3, 12, 8) <= sys.version_info < (3, 13)


def arrange() -> None:
    """From now on, in this process and its forks."""
    if not _WRITES_WHOLE:
        import _frozen_importlib_external as machinery

        machinery._write_atomic = write_whole  # type: ignore[attr-defined]


def write_whole(path: str, data: bytes | bytearray, mode: int = 0o666) -> None:
    """As the interpreter's own function does, but for a check that all was written."""
    unfinished = f"{path}.{id(path)}"
    handle = os.open(unfinished, os.O_EXCL | os.O_CREAT | os.O_WRONLY, mode & 0o666)
    try:
        try:
            written = os.write(handle, data)
        finally:
            os.close(handle)
        if written != len(data):
            raise OSError("the disk took only a part of the bytecode")
        os.replace(unfinished, path)
    except OSError:
        try:
            os.unlink(unfinished)
        except OSError:
            pass
        raise
