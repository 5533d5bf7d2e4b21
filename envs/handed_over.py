"""Hands a secret to a command so that no other process of this user can read it.

    we --pipe--> the command, which reads the pipe to its end at its start; then the pipe is empty

Variables would stay readable in `/proc` while the command runs, and its children would inherit
them. If this process is not root, shell and command run from copies that can be executed but not
read: the kernel then keeps other processes of the user from reading their memory, descriptors and
variables. Root can read everything.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

__all__ = ["SECRET", "SHELL", "HandedOver"]

_log = logging.getLogger(__name__)

#: Placeholder for the secret's path in a command's arguments.
SECRET: Final = "<secret>"  # noqa: S105 - a name, not a password
SHELL: Final = "/bin/sh"
#: Shells use descriptors below this number for themselves.
_FIRST: Final = 30
#: Bytes that a pipe holds without a reader.
_PIPE: Final = 65536


@dataclass(frozen=True, slots=True)
class HandedOver:
    """A shell, the command for it, and the descriptors that they need."""

    shell: str
    argv: list[str]
    descriptors: tuple[int, ...] = ()
    _open: ExitStack = field(default_factory=ExitStack, repr=False)

    @classmethod
    def make(cls, argv: Sequence[str], secret: bytes | None) -> HandedOver:
        """Prepare to start; without a secret, return the command unchanged; blocking."""
        if secret is None:
            return cls(SHELL, list(argv))
        with ExitStack() as until_made:
            pipe = _pipe(secret, until_made)
            shell, program, descriptors = SHELL, argv[0], [pipe]
            if os.geteuid() != 0 and _executable(tempfile.gettempdir()):
                descriptors += [_unreadable(path, until_made) for path in (shell, program)]
                shell, program = (f"/proc/self/fd/{fd}" for fd in descriptors[1:])
            path = f"/proc/self/fd/{pipe}"
            told = [program, *(path if part == SECRET else part for part in argv[1:])]
            return cls(shell, told, tuple(descriptors), until_made.pop_all())

    def close(self) -> None:
        """Close the descriptors, so that no later command gets them."""
        self._open.close()


def _pipe(secret: bytes, until: ExitStack) -> int:
    """Return a descriptor from which the secret can be read once."""
    far, near = os.pipe()
    with open(near, "wb", buffering=0) as file, open(far, "rb", buffering=0) as reader:
        if len(secret) > _PIPE:
            fcntl.fcntl(near, fcntl.F_SETPIPE_SZ, len(secret))
        os.set_blocking(near, False)
        if file.write(secret) != len(secret):
            raise OSError("a pipe takes no configuration of that size")
        return _high(reader.fileno(), until)


def _high(descriptor: int, until: ExitStack) -> int:
    made = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _FIRST)
    until.callback(os.close, made)
    return made


def _executable(folder: str) -> bool:
    if os.statvfs(folder).f_flag & os.ST_NOEXEC:
        _log.info(
            "no program in %s may be executed: the user's other processes can read uv's memory",
            folder,
        )
        return False
    return True


def _unreadable(program: str, until: ExitStack) -> int:
    """Return a nameless copy of a program, which can be executed but not read."""
    with open(program, "rb") as source, tempfile.TemporaryFile() as target:
        shutil.copyfileobj(source, target, 1 << 20)
        target.flush()
        # A file that is open for writing cannot be executed, and an unreadable file cannot be
        # opened later.
        with Path(f"/proc/self/fd/{target.fileno()}").open("rb") as reader:
            made = _high(reader.fileno(), until)
    os.fchmod(made, 0o111)
    return made
