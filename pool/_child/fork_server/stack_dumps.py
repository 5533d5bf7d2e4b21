"""The Python stacks of a worker's threads, whenever the supervisor asks for them.

    supervisor -- STACK worker --> zygote -- SIGNAL --> worker: C code of faulthandler, in any state
        ^                                                  |
        '------- a file in memory, shared by all of them <-'

The file is the zygote's, made by the supervisor, and has the same number in each worker. It is not the
call's output, and nothing of the call waits for it: the handler writes to it between two
instructions, and the call goes on. The supervisor asks one worker at a time.

The signal is one that a process ignores unless it asks for it: a program that the call became, or
started, is not hurt by one.
"""

from __future__ import annotations

import os
import signal

from . import worker_start

SIGNAL = signal.SIGWINCH
#: Whether there is such a file.
_there = False


def adopt(fd: int, control_fd: int) -> int:
    """Have the file that the supervisor made, under its number; below 0: there is none.

    Returns the control socket, which may have had that number.
    """
    global _there
    _there = fd >= 0
    if control_fd == worker_start.STACKS:
        control_fd = os.dup(control_fd)
    if not _there:
        # The number is taken all the same: what else had it would stay open in workers.
        fd = os.open(os.devnull, os.O_WRONLY)
    if fd != worker_start.STACKS:
        os.dup2(fd, worker_start.STACKS)
        os.close(fd)
    os.set_inheritable(worker_start.STACKS, False)
    worker_start.note(control_fd)  # it may have any number
    return control_fd


def arrange() -> None:
    """Have the signal answered, in this process and all that it forks."""
    if _there:
        import faulthandler

        faulthandler.register(SIGNAL, file=worker_start.STACKS, all_threads=True, chain=False)
