"""Prepares the server's process before any user code runs.

The server raises its own limit of open files: the limit of a shell or container is often 1,024, and
a call uses three (a client's connection, a channel, an output). Zygotes, calls and builds get the
limit back with which the server was started.

A worker may have the server's uid. It could then read the server's environment (tokens) and memory
under /proc, or trace the server. The kernel forbids this if the server is not dumpable; exec makes
workers' interpreters dumpable again. Under memory pressure the kernel should kill a call, not the
server: the server lowers its OOM score, and workers raise theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import threading
import time
from collections.abc import Coroutine
from typing import Any, Final

from flashpool.frontends.settings.table import Settings
from flashpool.pool._child import processes

_log = logging.getLogger(__name__)

_PR_SET_DUMPABLE: Final = 4
_OOM_SCORE: Final = -500
#: Seconds that the process may take to exit after its server has stopped.
_EXIT_S: Final = 2.0
#: Descriptors of a worker: its channel and its output. Descriptors of a server without calls.
_OF_A_WORKER: Final = 2
_OF_THE_SERVER: Final = 64


class TooFewDescriptors(Exception):
    """The limit of open files is too low for the slots; the message says what to change."""


def raise_descriptors(settings: Settings) -> None:
    """Raise the limit of descriptors to what the slots need, and further if that is allowed.

    Raises:
        TooFewDescriptors: the hard limit is too low.
    """
    processes.raise_descriptors()
    soft, need = processes.limit_of(processes.DESCRIPTORS), descriptors_for(settings)
    if soft < need:
        raise TooFewDescriptors(
            f"FLASHPOOL_SLOTS={settings.slots} needs a limit of {need} open files, and the hard "
            f"limit is {processes.hard_limit_of(processes.DESCRIPTORS)}: raise it (ulimit -Hn; "
            "of a container --ulimit nofile), or set FLASHPOOL_SLOTS lower"
        )


def descriptors_for(settings: Settings) -> int:
    """Return how many descriptors a server needs with these settings; half are connections."""
    workers = settings.slots + settings.spares + settings.instances
    return 2 * (_OF_A_WORKER * workers + _OF_THE_SERVER)


def harden() -> None:
    """Lower the OOM score where permitted, then become non-dumpable."""
    # In this order: /proc/self belongs to root once the process is not dumpable.
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(str(_OOM_SCORE))
    except OSError as error:
        _log.debug("The OOM score stays as it is: %s", error)
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        _log.warning("Cannot become non-dumpable: %s", ctypes.get_errno())


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that stop a server: the first begins a drain, the second ends it.

    A closing terminal sends SIGHUP, unless ``nohup`` or a similar program had it ignored.
    """
    found = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
    return found[:2] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else found


def has_terminal() -> bool:
    """Return whether a terminal controls this process: a closing terminal sends it SIGHUP."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def give_way() -> None:
    """Run the server as SCHED_BATCH, so that it does not preempt calls whenever it wakes.

    Each call wakes the server several times. Under the usual policy, the server would each time
    preempt a worker that is about to answer. Under SCHED_BATCH, more events have arrived when the
    server gets a core, and it handles them together. Zygotes, and so calls, are scheduled as
    usual; builds of environments are scheduled like the server.
    """
    if os.sched_getscheduler(0) == os.SCHED_OTHER:  # else the operator has chosen a policy
        with contextlib.suppress(OSError):
            policy = os.SCHED_BATCH | os.SCHED_RESET_ON_FORK
            os.sched_setscheduler(0, policy, os.sched_param(0))


def run_loop(main: Coroutine[Any, Any, None]) -> None:
    """Run ``main`` as `asyncio.run` does, on uvloop if installed; what follows has a time limit."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(_with_an_end(main))
    else:
        uvloop.run(_with_an_end(main))


async def _with_an_end(main: Coroutine[Any, Any, None]) -> None:
    """Await ``main``, then end the process after some seconds even if threads are still running.

    A loop that closes waits for its threads, and Python for the others, both without a limit. A
    thread that hangs in a system call, for example on a volume, would keep a server alive that has
    nothing left to do.
    """
    await main
    threading.Thread(target=_exit_after, args=(_EXIT_S,), name="exit", daemon=True).start()


def _exit_after(seconds: float) -> None:
    time.sleep(seconds)
    _log.warning("Exiting although some threads are still running")
    os._exit(0)
