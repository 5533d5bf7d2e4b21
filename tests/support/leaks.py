"""What a test left behind: processes, descriptors, threads, shared memory, temporary files.

`Snapshot.take()` before and after; `wait_for_leaks(before)` polls until nothing is left or
the grace is over. A leak is what exists after and did not before:

    process      a descendant of this one, double-forked ones included: pytest is made a
                 subreaper (`adopt_orphans`), so every orphan comes back to it. A descendant
                 of a child that already lived before the test (a server that a module's
                 fixture owns) is that child's affair, and is checked when the fixture ends.
                 Zombies count while somebody may still wait for them, then they are reaped.
    descriptor   a number that now leads elsewhere than before
    thread       a Python thread, daemon or not
    shm          a file in /dev/shm, unless a process that is no descendant of this one has
                 it mapped: every program of the machine makes them there
    file         an entry of the session's private TMPDIR

A snapshot costs well under a millisecond or two: nothing but /proc listings and the links
of our own descriptors; other processes are only looked at when they are new.
"""

import contextlib
import ctypes
import gc
import os
import signal
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Final

#: How long a test's leftovers may take to disappear by themselves, in seconds.
GRACE_S: Final = 10.0
#: A zombie of this age, in seconds, is an orphan of ours that no other process will reap.
ZOMBIE_GRACE_S: Final = 0.3
#: Created and kept by the test tools.
IGNORED_FILES: Final = ("pytest-of-", "uv-", ".tmp")

_PR_SET_CHILD_SUBREAPER: Final = 36


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Processes, descriptors, threads and files at one moment."""

    pids: frozenset[int]
    descriptors: frozenset[tuple[int, str]]
    threads: frozenset[int]
    shm: frozenset[str]
    files: frozenset[str]

    @classmethod
    def take(cls) -> "Snapshot":
        return cls(
            pids=frozenset(_all_pids()),
            descriptors=frozenset(_descriptors()),
            threads=frozenset(id(thread) for thread in threading.enumerate()),
            shm=frozenset(_listdir("/dev/shm")),
            files=frozenset(_listdir(tempfile.gettempdir())),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """One leaked resource."""

    kind: str
    what: str
    pid: int = 0

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


def adopt_orphans() -> None:
    """Make this process the parent of all orphans among its descendants."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot become a subreaper")


def wait_for_leaks(
    before: Snapshot, grace_s: float | None = None, *, only: frozenset[str] | None = None
) -> list[Leak]:
    """Poll until nothing is left or the grace is over; return leaks of these kinds."""
    started = time.monotonic()
    grace_s = GRACE_S if grace_s is None else grace_s
    pause = 0.001
    while True:
        leaks = [leak for leak in find_leaks(before) if only is None or leak.kind in only]
        elapsed = time.monotonic() - started
        if not leaks or elapsed > grace_s:
            return leaks
        if elapsed > ZOMBIE_GRACE_S:
            _reap_zombies(leaks)
        gc.collect()  # a reference cycle may keep objects open
        time.sleep(pause)
        pause = min(pause * 2, 0.1)


def find_leaks(before: Snapshot) -> list[Leak]:
    """Return what exists now and did not exist in the snapshot."""
    now = Snapshot.take()
    names = {id(thread): thread.name for thread in threading.enumerate()}
    return [
        *_process_leaks(before.pids, now.pids),
        *(
            Leak(kind="descriptor", what=f"{fd} -> {target}")
            for fd, target in sorted(now.descriptors - before.descriptors)
            if fd != _tracker("_fd")
        ),
        *(
            Leak(kind="thread", what=names.get(key, "?"))
            for key in now.threads - before.threads
            if key in names
        ),
        *_shm_leaks(before.shm, now.shm),
        *(
            Leak(kind="file", what=os.path.join(tempfile.gettempdir(), name))
            for name in sorted(now.files - before.files)
            if not name.startswith(IGNORED_FILES)
        ),
    ]


def kill(leaks: list[Leak]) -> None:
    """End leaked processes, so that they do not disturb the tests to come."""
    for leak in leaks:
        if leak.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(leak.pid, signal.SIGKILL)


def descendants(root: int) -> dict[int, str]:
    """Every living descendant of a process, with its command line."""
    parents = {pid: parent for pid in _all_pids() if (parent := _parent(pid))}
    found: dict[int, str] = {}
    for pid in parents:
        if root in _ancestors(pid, parents.get):
            found[pid] = _command(pid)
    return found


def _process_leaks(before: frozenset[int], now: frozenset[int]) -> Iterator[Leak]:
    this, tracker = os.getpid(), _tracker("_pid")
    for pid in sorted(now - before - {this, tracker}):
        for ancestor in _ancestors(pid, _parent):
            if ancestor == this:
                yield Leak(kind="process", what=f"{pid} {_command(pid)}", pid=pid)
            if ancestor == this or ancestor in before:
                break


def _shm_leaks(before: frozenset[str], now: frozenset[str]) -> Iterator[Leak]:
    new = now - before
    others = _mapped_by_others() if new else frozenset()
    for name in sorted(new):
        # By inode: the C library creates a semaphore under a temporary name, then links it.
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(f"/dev/shm/{name}")
            if stat.S_ISREG(found.st_mode) and found.st_ino not in others:
                yield Leak(kind="shm", what=f"/dev/shm/{name}")


def _mapped_by_others() -> frozenset[int]:
    """Return inodes in /dev/shm that processes outside of this process tree have mapped."""
    this = os.getpid()
    found: set[int] = set()
    for pid in _all_pids():
        # The process may have exited, or belong to another user.
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
                rows = [line.split(None, 5) for line in maps if "/dev/shm/" in line]
            if rows and pid != this and this not in _ancestors(pid, _parent):
                found.update(int(row[4]) for row in rows)
    return frozenset(found)


def _ancestors(pid: int, parent: Callable[[int], int | None]) -> Iterator[int]:
    ancestor = parent(pid)
    while ancestor:
        yield ancestor
        ancestor = parent(ancestor)


def _all_pids() -> Iterator[int]:
    return (int(name) for name in _listdir("/proc") if name.isdigit())


def _descriptors() -> Iterator[tuple[int, str]]:
    for name in _listdir("/proc/self/fd"):
        # The listing includes its own descriptor, which is closed by now.
        with contextlib.suppress(OSError):
            yield int(name), os.readlink(f"/proc/self/fd/{name}")


def _stat(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def _parent(pid: int) -> int | None:
    stat = _stat(pid)
    return int(stat[1]) if stat else None


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
            line = file.read().replace("\0", " ").strip()
    except OSError:
        return "(gone)"
    state = (_stat(pid) or ["?"])[0]
    return f"[{state}] {line[:200]}"


def _reap_zombies(leaks: list[Leak]) -> None:
    for leak in leaks:
        if leak.pid and (_stat(leak.pid) or [""])[0] == "Z":
            with contextlib.suppress(ChildProcessError):
                os.waitpid(leak.pid, os.WNOHANG)


def _tracker(attribute: str) -> int | None:
    # multiprocessing keeps its resource tracker until the interpreter ends.
    value: int | None = getattr(resource_tracker._resource_tracker, attribute, None)
    return value


def _listdir(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []
