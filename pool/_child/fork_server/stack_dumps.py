"""The Python stacks of a worker's threads, whenever the supervisor asks for them.

    supervisor -- STACK worker --> zygote -- SIGNAL --> worker: C code of faulthandler, in any state
        ^                                                  |
        '------- a file in memory, shared by all of them <-'

The file belongs to the zygote, is created by the supervisor, and has the same number in each
worker. It is separate from the call's output, and the call does not wait: the handler writes to the
file between two instructions, and the call continues. The supervisor asks one worker at a time.

A process ignores this signal by default, so it does not hurt a program that the call became, or
started.
"""

from __future__ import annotations

import os
import signal

from . import worker_start

SIGNAL = signal.SIGWINCH
#: Whether the file exists.
_there = False


def adopt(fd: int, control_fd: int) -> int:
    """Take the file that the supervisor created, under its number; below 0: there is none.

    Return the control socket, which may have had that number.
    """
    global _there
    _there = fd >= 0
    if control_fd == worker_start.STACKS:
        control_fd = os.dup(control_fd)
    if not _there:
        # Occupy the number nevertheless: another descriptor with it would stay open in workers.
        fd = os.open(os.devnull, os.O_WRONLY)
    if fd != worker_start.STACKS:
        os.dup2(fd, worker_start.STACKS)
        os.close(fd)
    os.set_inheritable(worker_start.STACKS, False)
    worker_start.note(control_fd)  # it may have any number
    return control_fd


def arrange() -> None:
    """Handle the signal in this process and all its forks."""
    if _there:
        import faulthandler

        faulthandler.register(SIGNAL, file=worker_start.STACKS, all_threads=True, chain=False)
