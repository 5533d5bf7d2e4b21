"""Handles engines when the interpreter exits, or forks.

exiting: close all -> wait for submitted calls -> (Ctrl-C: end them) -> stopped
         after Ctrl-C: end all -> stopped
forking: the child disowns all engines: their threads and processes are the parent's
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import signal
import sys
import threading
from typing import Protocol

from . import stopping


class Living(stopping.Stoppable, Protocol):
    """An engine that has not stopped."""

    def close(self, cancel_queued: bool = False) -> stopping.OpenCalls:
        """Accept no more calls; stop when those accepted have ended."""

    def disown(self) -> None:
        """In a fork: leave the parent's resources alone, and fail calls that wait here."""


#: Engines of this process that have not stopped.
engines: set[Living] = set()
exiting = False
#: Whether Ctrl-C stopped submitted calls while the interpreter was exiting.
_cut_off = False


def _exit() -> None:
    """Finish submitted calls before the interpreter exits, as `concurrent.futures` does."""
    global exiting, _cut_off  # noqa: PLW0603 - the interpreter exits once
    exiting = True
    living = list(engines)
    if _is_interrupted():
        stopping.end_now(living, "KeyboardInterrupt ended the program")
        return
    try:
        for engine in living:
            engine.close()
        for engine in living:
            engine.join()
    except KeyboardInterrupt:
        _cut_off = True
        stopping.end_now(living, "Ctrl-C while the program waited for its calls to finish")
        raise


def _is_interrupted() -> bool:
    """Return whether an uncaught KeyboardInterrupt ends the program.

    An interactive prompt records its last uncaught exception in the same place, and continues.
    """
    at_prompt = sys.flags.interactive or hasattr(sys, "ps1")
    kind = getattr(sys, "last_type", None)
    return not at_prompt and isinstance(kind, type) and issubclass(kind, KeyboardInterrupt)


def _die_of_interrupt() -> None:
    """Exit by SIGINT, as the last hook: a program whose calls were cut off must not report success.

    Python forgets a Ctrl-C that comes so late, and would exit with status 0.
    """
    if not _cut_off:
        return
    for one in gc.get_objects():
        # The interpreter would flush them only when it deletes its modules.
        if isinstance(one, io.IOBase):
            try:
                one.flush()
            except (OSError, ValueError):
                pass
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)


def _disown_all() -> None:
    for engine in list(engines):
        engine.disown()
    engines.clear()


# Before threads are joined and before atexit hooks, as thread pools do it; a plain atexit hook
# would run when daemon threads can no longer run safely.
getattr(threading, "_register_atexit", atexit.register)(_exit)
# Hooks run in reverse order, so this one runs after those of modules that import this one.
atexit.register(_die_of_interrupt)
os.register_at_fork(after_in_child=_disown_all)
