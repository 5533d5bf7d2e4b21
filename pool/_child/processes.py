"""Queries and operations on processes: parents, children, limits, `prctl`. Linux only.

``ctypes`` is loaded once, in the zygote; in a worker, a call of a C function costs a microsecond.
It replaces `resource` and `mmap`, libraries whose mappings every fork would copy.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import time

#: linux/prctl.h
_PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 4, 36

_libc = ctypes.CDLL(None)
_prctl = _libc.prctl
#: A ``struct rusage``: two times of two longs each, then ``ru_maxrss`` and other longs.
_rusage = (ctypes.c_long * 32)()
_MAXRSS = 4
_getrusage = _libc.getrusage
#: A ``struct rlimit``: the soft and the hard limit. Kinds of limits (asm-generic/resource.h).
_Limit = ctypes.c_ulong * 2
CORE_SIZE, PROCESSES, DESCRIPTORS = 4, 6, 7
_UNLIMITED = ctypes.c_ulong(-1).value
#: From sys/mman.h: readable and writable; shared and anonymous; the result of a failed mmap.
_READ_WRITE, _SHARED, _FAILED = 3, 0x21, ctypes.c_void_p(-1).value
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_fflush = _libc.fflush
_sigmask = _libc.pthread_sigmask
#: An empty ``sigset_t``.
_NO_SIGNALS = (ctypes.c_ulong * 16)()
SIG_BLOCK, SIG_SETMASK = int(signal.SIG_BLOCK), int(signal.SIG_SETMASK)
#: linux/fcntl.h
_F_DUPFD_CLOEXEC = 1030
_fcntl = _libc.fcntl
#: The limit of descriptors that flashpool's processes set for themselves, if the hard limit allows.
MOST_DESCRIPTORS = 65536
#: The soft limit that this process was started with, once it has been changed.
_began_with: int | None = None
#: Pauses between rounds of `kill_descendants`: a killed process is mostly gone within a
#: millisecond.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.0005, 0.05


def become_subreaper() -> None:
    """Make orphaned descendants of this process its children instead of children of init."""
    if _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError("PR_SET_CHILD_SUBREAPER failed: is this Linux 3.4 or later?")


def set_dumpable(dumpable: int) -> None:
    """Set whether processes of the same user may trace this one and take its descriptors (1 or 0).

    Forks inherit the setting. Files in /proc of a process that is not dumpable belong to root.
    """
    if _prctl(_PR_SET_DUMPABLE, dumpable, 0, 0, 0) != 0:
        raise OSError(f"PR_SET_DUMPABLE {dumpable} failed")


def unblock_signals(how: int = SIG_SETMASK) -> None:
    """Unblock all signals; with ``how=SIG_BLOCK``, change nothing.

    `signal.pthread_sigmask` returns a set of blocked signals, which costs a worker memory pages.
    """
    if _sigmask(how, _NO_SIGNALS, None) != 0:
        raise OSError("pthread_sigmask failed")


def limit_of(kind: int) -> float:
    """Return this process's soft limit of a kind; infinity if unlimited."""
    limit = _Limit()
    if _libc.getrlimit(kind, limit) != 0:
        raise OSError(f"getrlimit({kind}) failed")
    return float("inf") if limit[0] == _UNLIMITED else limit[0]


def hard_limit_of(kind: int) -> int:
    """Return how far this process may raise its own limit of a kind."""
    limit = _Limit()
    if _libc.getrlimit(kind, limit) != 0:
        raise OSError(f"getrlimit({kind}) failed")
    return int(limit[1])


def set_soft_limit(kind: int, soft: int) -> None:
    """Set the soft limit, at most to the hard limit."""
    hard = hard_limit_of(kind)
    if _libc.setrlimit(kind, _Limit(min(soft, hard), hard)) != 0:
        raise OSError(f"setrlimit({kind}) failed")


def raise_descriptors() -> bool:
    """Raise this process's soft limit of open files; return whether that was possible.

    Children get the original limit (`descriptors_of_children`): code that uses ``select`` breaks at
    numbers above 1023, and some code closes every possible number.
    """
    global _began_with
    soft = limit_of(DESCRIPTORS)
    most = min(hard_limit_of(DESCRIPTORS), MOST_DESCRIPTORS)
    if soft >= most:
        return False
    if _began_with is None:
        _began_with = int(soft)
    set_soft_limit(DESCRIPTORS, most)
    return True


def descriptors_of_children() -> int | None:
    """Return the limit of descriptors with which this process was started, if it was changed."""
    return _began_with


def duplicate_from(fd: int, lowest: int) -> int:
    """Duplicate a descriptor to the first free number from ``lowest`` on; close it on exec."""
    made: int = _fcntl(fd, _F_DUPFD_CLOEXEC, lowest)
    if made < 0:
        # If the limit is below ``lowest``, the kernel reports EINVAL.
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return made


def forbid_core_dumps() -> None:
    """Forbid core dumps of this process and all its forks."""
    if _libc.setrlimit(CORE_SIZE, _Limit(0, 0)) != 0:
        raise OSError("setrlimit(RLIMIT_CORE) failed")


def shared_bytes(number: int) -> ctypes.Array[ctypes.c_ubyte]:
    """Return zeroed memory that this process shares with its forks; never freed."""
    address = _mmap(None, number, _READ_WRITE, _SHARED, -1, 0)
    if address == _FAILED:
        raise OSError(f"cannot allocate {number} bytes of shared memory")
    return (ctypes.c_ubyte * number).from_address(address)


def peak_rss_kb() -> int:
    """Return this process's peak resident set size in KiB."""
    _getrusage(0, _rusage)
    return _rusage[_MAXRSS]


def flush_c_streams() -> None:
    """Flush the output of C code, which ``os._exit`` would drop."""
    _fflush(None)


def children(pid: int) -> list[int]:
    """Return the children of a process, including zombies; empty if the process is gone."""
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
    """Find the children by every process's parent, on kernels without CONFIG_PROC_CHILDREN."""
    return [
        other
        for other in map(int, filter(str.isdigit, os.listdir("/proc")))
        if parent(other) == pid
    ]


def parent(pid: int) -> int:
    """Return the parent of a process; 0 if the process is gone."""
    try:
        return int(_stat(pid)[1])
    except (OSError, IndexError, ValueError):
        return 0


def state(pid: int) -> str:
    """Return the kernel's letter for a process's state: ``D`` (cannot be killed), ``T`` (stopped).

    Empty if the process is gone.
    """
    try:
        return _stat(pid)[0]
    except (OSError, IndexError):
        return ""


def _stat(pid: int) -> list[str]:
    """Return the fields of ``/proc/<pid>/stat`` from the state on."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        # The command, in parentheses, may itself contain spaces and parentheses.
        return file.read().rpartition(")")[2].split()


def descendants(pid: int) -> list[int]:
    """Return all processes below a process, parents before their children."""
    found = children(pid)
    for one in found:  # grows during the loop; no recursion, as user code makes trees of any depth
        found += children(one)
    return found


def named(argument: str) -> list[int]:
    """Return the processes that have this argument on their command line."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if argument.encode() in file.read().split(b"\0"):
                    found.append(int(pid))
        except OSError:
            pass  # the process is gone
    return found


def send(pid: int, number: int) -> None:
    """Signal a process that may be gone."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def kill_descendants() -> None:
    """Kill and reap all processes below this process; return when no process is left.

    This process must be a subreaper: the children of a killed child become its own children, and
    are killed in the next round, whatever their session or group. A round may miss a process, if a
    process forks meanwhile or no descriptor is free to read /proc. So the loop ends only when the
    kernel reports that this process has no child.
    """
    me = os.getpid()
    pause = _FIRST_PAUSE_S
    while True:
        for pid in descendants(me):
            send(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pause = _FIRST_PAUSE_S
        except ChildProcessError:
            return
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)
