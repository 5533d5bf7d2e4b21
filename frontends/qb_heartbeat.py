"""The SDK's heartbeat process, made to end with its worker.

The SDK starts it as a daemonic child, which Python ends when the worker leaves in order. When
the worker is killed it is not, and goes on telling the platform that a dead worker's jobs are
in progress. Here the kernel kills it with its parent.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from typing import Any, Final

_PR_SET_PDEATHSIG: Final = 1


class Heartbeat:
    """What the child runs in place of the SDK's function; made in the worker."""

    def __init__(self, loop: Callable[..., Any]) -> None:
        self._loop = loop
        self._parent = os.getpid()

    def __call__(self, *args: Any) -> None:
        """Ping for as long as the worker lives. Runs in the child's only thread."""
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self._parent:
            os._exit(0)  # it died before it could be watched
        # A terminal's Ctrl-C is the worker's to answer, which pings until it has left.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._loop(*args)
