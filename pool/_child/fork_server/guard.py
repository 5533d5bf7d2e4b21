"""The zygote's parent: a process that only waits, and leaves no process behind.

    supervisor --exec--> guard --fork--> zygote --fork--> workers --> processes of user code

The guard is the zygote's subreaper. When the zygote or the supervisor dies, however they die, the
guard kills all processes below it and exits; so its own exit means that all of them are gone. The
zygote watches the guard in turn (`zygote`), so that no single death leaves a process behind.

Neither process is dumpable: a call of the same user cannot trace it or take its descriptors.
"""

from __future__ import annotations

import os
import select
import signal
import sys

from .. import call_files, processes, shortage

#: Signals that end a process by default, but do not indicate a fault in it.
_POLITE = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
)


def split(control_fd: int, supervisor_pid: int) -> int:
    """Fork the zygote; return only in the zygote, with a pidfd of the guard.

    The guard watches the supervisor by pidfd and not by a pipe: any process forked from the
    supervisor might hold the other end of a pipe open.
    """
    processes.become_subreaper()
    supervisor = os.pidfd_open(supervisor_pid)
    if os.getppid() != supervisor_pid:
        # The supervisor died before it was watched, and its pid may belong to another process.
        os._exit(1)
    guard = os.pidfd_open(os.getpid())
    try:
        zygote = os.fork()
    except OSError as error:
        print(f"it cannot fork: {error}", file=sys.stderr, flush=True)
        os._exit(shortage.EXIT_STATUS if shortage.of(error) else 1)
    if zygote == 0:
        os.close(supervisor)
        processes.become_subreaper()
        return guard
    os.close(guard)
    os.close(control_fd)
    _watch(zygote, supervisor)
    raise AssertionError("unreachable")


def take_no_signals() -> None:
    """Block signals from terminals, operators and calls, which must not end a guard or zygote.

    The signals are blocked, not ignored: a worker unblocks them with one system call, and pending
    signals are not inherited.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _POLITE)


def _watch(zygote: int, supervisor: int) -> None:
    processes.set_dumpable(0)
    # Close the guard's copies of the output pipe, whose end means that the zygote has exited.
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    take_no_signals()
    watched = os.pidfd_open(zygote)
    poll = select.poll()
    poll.register(watched, select.POLLIN)
    poll.register(supervisor, select.POLLIN)
    poll.poll()
    processes.send(zygote, signal.SIGKILL)
    _, status = os.waitpid(zygote, 0)
    processes.kill_descendants()
    call_files.remove_all()
    code = os.waitstatus_to_exitcode(status)
    sys.stdout = sys.stderr = None
    os._exit(code if code >= 0 else 128 - code)
