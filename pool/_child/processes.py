"""What the kernel knows of processes: parents, children, `prctl`. Linux only.

``ctypes`` is loaded once in the zygote; a forked worker pays a microsecond a call.
"""

from __future__ import annotations

import ctypes
import os
import signal

#: linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None)
_prctl = _libc.prctl
#: A ``struct rusage``: two times of two longs each, then ``ru_maxrss`` and other longs.
_rusage = (ctypes.c_long * 32)()
_MAXRSS = 4
_getrusage = _libc.getrusage
_fflush = _libc.fflush


def become_subreaper() -> None:
    """Make orphaned descendants of this process its children, instead of init's."""
    if _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError("PR_SET_CHILD_SUBREAPER failed: is this Linux 3.4 or later?")


def peak_rss_kb() -> int:
    """Peak resident set of this process in KiB."""
    _getrusage(0, _rusage)
    return _rusage[_MAXRSS]


def flush_c_streams() -> None:
    """Write out what C code printed: ``os._exit`` would drop it."""
    _fflush(None)


def children(pid: int) -> list[int]:
    """Children of a process, zombies too; empty when it is gone."""
    try:
        found: list[int] = []
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
                found += map(int, file.read().split())
        return found
    except FileNotFoundError:
        return _children_by_scan(pid) if os.path.exists(f"/proc/{pid}") else []
    except OSError:
        return []


def _children_by_scan(pid: int) -> list[int]:
    """The same without CONFIG_PROC_CHILDREN: ask every process for its parent."""
    return [
        other
        for other in map(int, filter(str.isdigit, os.listdir("/proc")))
        if parent(other) == pid
    ]


def parent(pid: int) -> int:
    """Parent of a process, 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The command, in parentheses, may itself hold spaces and parentheses.
            return int(file.read().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def descendants(pid: int) -> list[int]:
    """All below a process, parents before their children."""
    found: list[int] = []
    for child in children(pid):
        found.append(child)
        found += descendants(child)
    return found


def send(pid: int, number: int) -> None:
    """Signal a process that may be gone."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def kill_descendants() -> None:
    """Kill and reap all below this process; returns when there is nothing left.

    This process must be a subreaper: what a killed child leaves becomes its own child,
    and is met in the next round, whatever session or group it is in.
    """
    me = os.getpid()
    while True:
        for pid in descendants(me):
            send(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return
