"""The start of a worker, before it has a call.

    Link (channel, output) --fork--> live: session, descriptors --> work --> _exit

`live` runs on the zygote's stack, in the new fork, and never returns. Frames travel on a private
descriptor with a high number, so that user code that prints to, closes or overwrites low
descriptors does not touch them. Descriptors 1 and 2 are the call's output pipe, or two pipes if
stdout and stderr are separate.
"""

from __future__ import annotations

import errno
import os
import sys
from _socket import socketpair

# Bound here: user code may have replaced or deleted them in `os` when they are needed.
from builtins import BaseException, BrokenPipeError, ConnectionResetError, OSError
from os import _exit, closerange, dup2, getpid, setsid, write

from .. import forking, processes, wire
from ..channel import Channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

#: Exit statuses of workers without a RESULT: user code destroyed the channel; user code damaged the
#: interpreter, so that no result could be created; no user code had begun.
CHANNEL_LOST = 81
DAMAGED = 82
NOT_BEGUN = 83
_LOST = (errno.EBADF, errno.ENOTSOCK, errno.ENOTCONN, errno.EOPNOTSUPP, errno.EINVAL)
#: Most workers forked together: the message about them carries two descriptors for each, or three.
BATCH = wire.MAX_FDS // 2
SPLIT_BATCH = wire.MAX_FDS // 3
#: The soft limit of descriptors that the zygote was started with, which its calls get.
FIRST_LIMIT = processes.limit_of(processes.DESCRIPTORS)
#: Channels have the first free numbers from here on, beyond the reach of ``closerange(3, 1024)``
#: and similar code. With many workers, the zygote's own descriptors have such numbers, too.
FIRST_CHANNEL = int(min(2011, FIRST_LIMIT - BATCH))
#: The descriptor of the file to which a worker writes its stacks on request (`stack_dumps`).
STACKS = FIRST_CHANNEL - 1
#: One more than the zygote's highest descriptor; workers close descriptors up to here.
end = FIRST_CHANNEL + BATCH
#: Whether the zygote has raised its own limit of descriptors.
limit_is_raised = False


class Link:
    """Both ends of the channel and output of a worker that will be forked, and its mark.

    stderr shares the output pipe, or has its own pipe (``split``), which costs two further
    descriptors, and loses the order between stdout and stderr.
    """

    __slots__ = ("channel", "errors", "errors_w", "mark", "near", "output", "output_w")

    def __init__(self, mark: int, split: bool) -> None:
        self.mark = mark
        self.near, far = socketpair()
        made: list[int] = []
        try:
            made += os.pipe()
            made += os.pipe() if split else ()
            channel_fd = processes.duplicate_from(far.fileno(), FIRST_CHANNEL)
        except OSError:
            self.near.close()
            for fd in made:
                os.close(fd)
            raise
        finally:
            far.close()
        self.output, self.output_w = made[:2]
        self.errors, self.errors_w = made[-2:]
        note(channel_fd, made[-1])
        self.channel = Channel(channel_fd)

    def close_far(self) -> None:
        """Close the worker's ends, in the zygote."""
        self.channel.sock.close()
        os.close(self.output_w)
        if self.errors_w != self.output_w:
            os.close(self.errors_w)

    def close_near(self) -> None:
        """Close the supervisor's ends, in the zygote."""
        self.near.close()
        os.close(self.output)
        if self.errors != self.output:
            os.close(self.errors)

    def near_ends(self) -> list[int]:
        """Return the supervisor's ends."""
        ends = [self.near.fileno(), self.output, self.errors]
        return ends if self.errors != self.output else ends[:2]


#: See `processes.unblock_signals`.
_mask_how = processes.SIG_SETMASK
#: Whether workers are dumpable (`processes.set_dumpable`): limits, stats and profilers read them.
_dumpable = 1


def note(*fds: int) -> None:
    """Record descriptors of the zygote, so that workers close them."""
    global end
    for fd in fds:
        if fd >= end:
            end = fd + 1


def live(link: Link, work: Callable[[Link], None]) -> NoReturn:
    """In the fork: separate this process from the zygote, let it work, and exit."""
    status = NOT_BEGUN
    try:
        _set_apart(link)
        work(link)
        status = 0
    except (wire.Closed, BrokenPipeError, ConnectionResetError):
        status = 0
    except wire.Damaged as damage:
        status = DAMAGED
        write(2, f"{damage.what}\n".encode("utf-8", "replace"))
    except OSError as error:
        if error.errno in _LOST:
            status = CHANNEL_LOST
        else:
            sys.excepthook(*sys.exc_info())
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        _exit(status)


def _set_apart(link: Link) -> None:
    setsid()
    processes.unblock_signals(_mask_how)
    processes.become_subreaper()
    # Kept: 0 (/dev/null), 1, 2, the file of stacks and the channel. Closed: all other descriptors
    # of the zygote.
    dup2(link.output_w, 1)
    dup2(link.errors_w, 2)
    own = link.channel.fd
    closerange(3, STACKS)
    closerange(FIRST_CHANNEL, own)
    closerange(own + 1, end)
    # Not earlier: until here the worker had the zygote's control socket, and channels of other
    # workers.
    processes.set_dumpable(_dumpable)
    if limit_is_raised:
        processes.set_soft_limit(processes.DESCRIPTORS, int(FIRST_LIMIT))
    forking.main_thread._native_id = getpid()  # type: ignore[attr-defined]


def rehearse(link: Link) -> None:
    """Warm up `_set_apart`, with functions that do nothing in place of system calls."""
    ours = globals()
    names = ("setsid", "closerange", "dup2", "_dumpable", "_mask_how")
    theirs = {name: ours[name] for name in names}
    # Stand-ins of the same kinds: the interpreter distinguishes functions only by kind.
    ours.update(setsid=getpid, closerange=divmod, dup2=max)
    ours.update(_dumpable=0, _mask_how=processes.SIG_BLOCK)
    _set_apart(link)
    ours.update(theirs)
