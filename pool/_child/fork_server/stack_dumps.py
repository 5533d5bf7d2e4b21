"""Writes the Python stacks of a worker's threads when the supervisor asks for them.

    supervisor -- STACK worker --> zygote -- SIGNAL --> worker: C code of faulthandler, in any state
        ^                                                  |
        '------- memory file, shared by all of them <------'

The supervisor creates a file for each zygote; it has the same descriptor number in each worker. The
file is separate from the call's output, and the call does not wait: the handler writes to the file
between two instructions, and the call continues. The supervisor asks one worker at a time.

Processes ignore this signal by default, so the signal does not disturb a program that the call
started, or that replaced the worker (exec).
"""

from __future__ import annotations

import os
import signal

from . import worker_start

SIGNAL = signal.SIGWINCH
#: Whether the file exists.
_there = False


def adopt(fd: int, control_fd: int) -> int:
    """Move the supervisor's file to its number; ``fd`` below 0: there is no file.

    Returns the control socket's descriptor, which moves if it had that number.
    """
    global _there
    _there = fd >= 0
    if control_fd == worker_start.STACKS:
        control_fd = os.dup(control_fd)
    if not _there:
        # Occupy the number nevertheless: workers do not close a descriptor with this number.
        fd = os.open(os.devnull, os.O_WRONLY)
    if fd != worker_start.STACKS:
        os.dup2(fd, worker_start.STACKS)
        os.close(fd)
    os.set_inheritable(worker_start.STACKS, False)
    worker_start.note(control_fd)  # the control socket may have any number
    return control_fd


def arrange() -> None:
    """Install the signal handler in this process and all its forks."""
    if _there:
        import faulthandler

        faulthandler.register(SIGNAL, file=worker_start.STACKS, all_threads=True, chain=False)
