"""Handles engines when the interpreter exits, or forks.

leaving: close all -> wait for what was submitted -> (Ctrl-C: end it) -> gone
         of a Ctrl-C: end all -> gone
forking: the child disowns all: their threads and processes are the parent's
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
    """An engine that has not ended."""

    def close(self, cancel_queued: bool = False) -> stopping.OpenCalls:
        """Take no more calls; leave when those taken have ended."""

    def disown(self) -> None:
        """In a fork: leave the parent's resources alone, and fail calls that wait here."""


#: Engines of this process that have not ended.
engines: set[Living] = set()
exiting = False
#: Whether Ctrl-C stopped submitted calls while the interpreter was exiting.
_cut_off = False


def _exit() -> None:
    """The interpreter is going: finish what was submitted, as `concurrent.futures` does."""
    global exiting, _cut_off  # noqa: PLW0603 - the interpreter leaves once
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
    """Return whether the program ends because of an uncaught KeyboardInterrupt.

    A prompt leaves its last uncaught exception in the same place, and continues.
    """
    at_prompt = sys.flags.interactive or hasattr(sys, "ps1")
    kind = getattr(sys, "last_type", None)
    return not at_prompt and isinstance(kind, type) and issubclass(kind, KeyboardInterrupt)


def _die_of_interrupt() -> None:
    """The last hook: a program whose work was cut off does not report success.

    Python forgets about a Ctrl-C that comes so late, and would exit with status 0.
    """
    if not _cut_off:
        return
    for one in gc.get_objects():
        # They would be flushed when the interpreter deletes its modules.
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


# Before threads are joined and before atexit's hooks, as thread pools do it; a plain
# atexit hook would come after daemon threads can no longer run safely.
getattr(threading, "_register_atexit", atexit.register)(_exit)
# Hooks run in reverse order, so this one runs after those of modules that import this one.
atexit.register(_die_of_interrupt)
os.register_at_fork(after_in_child=_disown_all)
