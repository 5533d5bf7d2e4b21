"""What becomes of engines when the interpreter leaves, or forks.

leaving: close all -> wait for what was submitted -> (Ctrl-C: end it) -> gone
forking: the child disowns all: their threads and processes are the parent's
"""

from __future__ import annotations

import atexit
import os
import threading
from typing import Protocol


class Living(Protocol):
    """An engine that has not ended."""

    def close(self, cancel_queued: bool = False) -> None:
        """Take no more calls; leave when those taken have ended."""

    def kill(self) -> None:
        """Close, and end every call now."""

    def join(self) -> None:
        """Wait until all has ended."""

    def disown(self) -> None:
        """It is the parent's: touch nothing, fail what waits here."""


#: Engines of this process that have not ended.
engines: set[Living] = set()
exiting = False


def _exit() -> None:
    """The interpreter is going: finish what was submitted, as `concurrent.futures` does."""
    global exiting  # noqa: PLW0603 - the interpreter leaves once
    exiting = True
    living = list(engines)
    try:
        for engine in living:
            engine.close()
        for engine in living:
            engine.join()
    except BaseException:  # Ctrl-C: no longer wait
        for engine in living:
            engine.kill()
        for engine in living:
            engine.join()
        raise


def _disown_all() -> None:
    for engine in list(engines):
        engine.disown()
    engines.clear()


# Before threads are joined and before atexit's hooks, as thread pools do it; a plain
# atexit hook would come after daemon threads can no longer run safely.
getattr(threading, "_register_atexit", atexit.register)(_exit)
os.register_at_fork(after_in_child=_disown_all)
