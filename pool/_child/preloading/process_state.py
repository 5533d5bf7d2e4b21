"""Compares a process before and after an import, to find resources that forks would share or lose.

    before = ProcessState() -> import -> difference(before) -> None, or why forks must not inherit

A fork has its own memory, but it shares open file descriptions and shared mappings with every other
fork, and does not inherit threads, children and timers. No list of libraries says which imports
create such resources: the process is compared with itself.
"""

from __future__ import annotations

import os
import signal
import sys

from .. import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: Forks without the hooks of Python code (`forking` replaces ``os.fork``).
_fork = os.fork
#: The version number in `random`'s state of a Mersenne Twister, and the bits of a word of its key.
_TWISTER, _WORD_BITS = 3, 32
#: Most keys that an import may have used up: each lasts for 624 numbers.
_ROUNDS = 64
#: Most resources that a reason names.
_SHOWN = 3


class ProcessState:
    """The state of this process at one moment."""

    __slots__ = ("children", "cwd", "descriptors", "randomness", "shared", "timers")

    def __init__(self) -> None:
        self.descriptors = _descriptors()
        self.shared = _shared_mappings()
        self.children = set(processes.children(os.getpid()))
        self.cwd = os.getcwd()
        self.timers = [signal.getitimer(kind)[0] > 0 for kind in _TIMERS]
        self.randomness = _random_states()


def why_not_fork() -> str | None:
    """Return why forks of this process would not work, or None."""
    return _threads() or _whether_forks_work()


def difference(before: ProcessState) -> str | None:
    """Return why workers must not inherit changes since then, or None."""
    reason = why_not_fork()
    if reason is not None:
        return reason
    now = ProcessState()
    for found, what in (
        (_new(now.descriptors, before.descriptors), "left a descriptor open ({})"),
        (_new(now.shared, before.shared), "left memory mapped that forks share ({})"),
        ([str(pid) for pid in now.children - before.children], "started a process ({})"),
    ):
        if found:
            return f"it {what.format(', '.join(found[:_SHOWN]))}, which every call would share"
    if any(now.timers) and now.timers != before.timers:
        return "it started a timer, which a fork does not copy"
    if now.cwd != before.cwd:
        return f"it changed the working directory, to {now.cwd}"
    for name, state in before.randomness.items():
        if not _follows(now.randomness.get(name), state):
            return f"it seeds the global random numbers of {name}"
    return None


def _new(now: dict[str, str], before: dict[str, str]) -> list[str]:
    return [what for key, what in now.items() if before.get(key) != what]


# Descriptors and mappings.


def _descriptors() -> dict[str, str]:
    """Return each open descriptor, and what it refers to."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            pass  # the descriptor that the listing itself used
    return found


def _shared_mappings() -> dict[str, str]:
    """Return each writable mapping that forks share, and what it maps."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        lines = [line.split(None, 5) for line in maps]
    # address access offset device inode path
    return {
        fields[0]: fields[5].strip() if len(fields) > 5 else "anonymous"
        for fields in lines
        if fields[1][1] == "w" and fields[1][3] == "s"
    }


# Conditions for forking.

_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)


def _limits() -> tuple[float, ...]:
    """Return how many descriptors and processes this process may have."""
    return processes.limit_of(processes.DESCRIPTORS), processes.limit_of(processes.PROCESSES)


_FIRST_LIMITS = _limits()


def _threads() -> str | None:
    if len(os.listdir("/proc/self/task")) > 1:
        # A library that supports forks, such as OpenBLAS, ends its threads before a fork, and
        # starts them again when they are needed. Try that.
        pid = _fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    names = _thread_names()
    if not names:
        return None
    shown = ", ".join(names[:_SHOWN])
    return f"it started {len(names)} thread(s) ({shown}), which a fork does not copy"


def _thread_names() -> list[str]:
    """Return the names of all threads except the main thread."""
    found = []
    for task in os.listdir("/proc/self/task"):
        if int(task) == os.getpid():
            continue
        try:
            with open(f"/proc/self/task/{task}/comm", encoding="utf-8", errors="replace") as file:
                found.append(file.read().strip())
        except OSError:
            pass  # the thread has just ended
    return found


def _whether_forks_work() -> str | None:
    if _cuda_is_initialised():
        return "it initialised CUDA, which cannot be used after a fork"
    if not _child_ends_are_seen():
        return "it ignores or handles SIGCHLD, without which no fork's end is seen"
    if any(now < then for now, then in zip(_limits(), _FIRST_LIMITS, strict=True)):
        return "it lowered a limit (RLIMIT_NOFILE, RLIMIT_NPROC) that forks need"
    return None


def _child_ends_are_seen() -> bool:
    """Return whether SIGCHLD is neither ignored (workers would leave no status) nor handled."""
    bit = 1 << (signal.SIGCHLD - 1)
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        masks = [line.split()[1] for line in status if line.startswith(("SigIgn", "SigCgt"))]
    return not any(int(mask, 16) & bit for mask in masks)


def _cuda_is_initialised() -> bool:
    """Ask the driver, if it is loaded: ``cuDeviceGetCount`` fails before ``cuInit``."""
    import ctypes

    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        libraries = {line.split()[-1] for line in maps if "/libcuda.so" in line}
    for path in libraries:
        try:
            count = ctypes.c_int()
            #: CUDA_ERROR_NOT_INITIALIZED (cuda.h)
            return bool(ctypes.CDLL(path).cuDeviceGetCount(ctypes.byref(count)) != 3)
        except (OSError, AttributeError):
            continue
    return False


# Global random numbers.


def _random_states() -> dict[str, Any]:
    """Return the state of each global generator whose library is loaded.

    An import that seeds a generator wants the same numbers in every process, but workers would
    renew the generator.
    """
    found = {}
    for module, state in _GLOBAL_GENERATORS.items():
        if module in sys.modules:
            try:
                found[module.partition(".")[0]] = state(sys.modules[module])
            except Exception:
                pass  # the module is half imported: its import failed
    return found


_GLOBAL_GENERATORS: dict[str, Callable[[Any], Any]] = {
    "random": lambda module: module.getstate()[1][:-1],
    "numpy.random.mtrand": lambda module: tuple(
        module._rand._bit_generator.state["state"]["key"].tolist()
    ),
    "torch": lambda module: module.initial_seed(),
}


def _follows(now: Any, before: Any) -> bool:
    """Return whether a generator may have come from one state to the other by drawing numbers.

    `random` and NumPy use Mersenne Twisters: after each 624 numbers, the whole key is new.
    """
    if now == before or not isinstance(before, tuple):
        return bool(now == before)
    from random import Random

    twister, key = Random(), before  # noqa: S311 - not for cryptography
    for _ in range(_ROUNDS):
        twister.setstate((_TWISTER, (*key, len(key)), None))
        twister.getrandbits(_WORD_BITS)
        key = twister.getstate()[1][:-1]
        if key == now:
            return True
    return False
