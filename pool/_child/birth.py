"""The first moments of a worker, before it knows of any call.

It runs on the zygote's stack, in the fresh fork, and never returns. Frames travel on a
high private descriptor, so that user code that prints to, closes or scribbles over the
low ones cannot touch them; 1 and 2 are the call's output pipe.
"""

from __future__ import annotations

import errno
import os
import resource
import sys

from . import preparation, processes, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

#: Exit status of a worker whose channel user code destroyed.
CHANNEL_LOST = 81
#: The channel's descriptor, beyond what ``closerange(3, 1024)`` and friends reach.
CHANNEL_FD = min(2011, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 1)


def live(channel_fd: int, output_fd: int, workdir: str, work: Callable[[int], None]) -> NoReturn:
    """Set this process apart, let it work, and end it.

    One straight run of calls, because each further function would be pages to copy.
    """
    status = CHANNEL_LOST
    try:
        os.setsid()
        processes.become_subreaper()
        # Kept: 0 (/dev/null), 1, 2 and the channel. Closed: all else that the zygote had.
        os.dup2(output_fd, 1)
        os.dup2(output_fd, 2)
        os.dup2(channel_fd, CHANNEL_FD, False)
        os.closerange(3, CHANNEL_FD)
        try:
            os.chdir(workdir)
        except OSError:
            # An earlier call removed it; that is no reason for this one to fail.
            os.chdir("/")
        preparation.lock_hooks_armed = True
        preparation.main_thread._native_id = os.getpid()  # type: ignore[attr-defined]
        work(CHANNEL_FD)
        status = 0
    except (wire.Closed, BrokenPipeError, ConnectionResetError):
        status = 0
    except OSError as error:
        if error.errno != errno.EBADF:
            sys.excepthook(*sys.exc_info())
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)
