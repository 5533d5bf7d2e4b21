"""What the server process does to itself before it runs anybody's code.

A worker may have the server's uid. It could then read the server's environment (tokens)
and memory under /proc, or trace it; a process that is not dumpable refuses that, and exec
makes workers' interpreters dumpable again. Under memory pressure the kernel should take a
call, not the server: its score is lowered, and workers raise theirs.
"""

from __future__ import annotations

import ctypes
import logging
from typing import Final

_log = logging.getLogger(__name__)

_PR_SET_DUMPABLE: Final = 4
_OOM_SCORE: Final = -500


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
