"""Makes imports write bytecode files completely, or not at all.

CPython before 3.12.8 and 3.13.1 does not check how many bytes a full disk accepted, and publishes
an incomplete file: every later import of that module fails, in any process. Calls and other
programs share the server's own interpreter.

Built environments accept no bytecode at all (envs/building/in_environment/environment_start.py).
"""

from __future__ import annotations

import os
import sys

_WRITES_WHOLE = sys.version_info >= (3, 13, 1) or (3, 12, 8) <= sys.version_info < (3, 13)


def arrange() -> None:
    """Replace the interpreter's function in this process and its forks, if it has the bug."""
    if not _WRITES_WHOLE:
        import _frozen_importlib_external as machinery

        machinery._write_atomic = write_whole  # type: ignore[attr-defined]


def write_whole(path: str, data: bytes | bytearray, mode: int = 0o666) -> None:
    """Write like the interpreter's own function, and check that everything was written."""
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
