"""Measures the memory of a call's process tree, and detects OOM kills by the kernel.

A limit is enforced by measuring again and again: RLIMIT_AS would break CUDA's huge reservations.

    MemoryWatch: used, on the loop --above the limit--> Measures.ask: exact, on a thread
                                                            '--still above--> exceeded
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from flashpool.pool._child import processes
from flashpool.pool.exit_causes import OomKill
from flashpool.pool.recorder import Recorder

_log = logging.getLogger(__name__)

#: Seconds between two checks of everything that has a limit.
_LOOK_S: Final = 0.05
#: Checks take at most one part in so many of the loop's time.
_LOOK_SHARE: Final = 20
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
#: Files in which the kernel counts its kills: control groups, version 2, then 1.
_COUNTERS: Final = (
    ("memory.events", "/sys/fs/cgroup/memory.events"),
    ("memory.oom_control", "/sys/fs/cgroup/memory/memory.oom_control"),
    ("vmstat", "/proc/vmstat"),
)


def used(pid: int) -> int:
    """Return an upper bound of the bytes that the process and all below it use.

    Resident memory is quick to read, but counts a page once for each process that shares the page.
    Only a tree that seems to use too much is worth the exact measure (`exact`).
    """
    return sum(map(_resident, (pid, *processes.descendants(pid))))


def exact(pid: int) -> int:
    """Return the proportional set size of the tree in bytes: a shared page counts once in all.

    The kernel visits each page, which takes some 8 ms per gigabyte.
    """
    return sum(map(proportional, (pid, *processes.descendants(pid))))


def _resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            resident = file.read().split()[1]
    except (OSError, IndexError):
        return 0
    return int(resident) * _PAGE


def proportional(pid: int) -> int:
    """Return a process's proportional share (PSS), or its resident memory if the kernel does not
    report that.
    """
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            for line in file:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return _resident(pid)
    return 0


class Measures:
    """Exact measurements, each on a thread because they would block the loop."""

    def __init__(self) -> None:
        #: Functions to call with the result of a running measurement, by root process and asker.
        self._asked: dict[int, dict[Hashable, Callable[[int], None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def ask(self, pid: int, who: Hashable, tell: Callable[[int], None]) -> None:
        """Measure a tree and call ``tell`` with the result; concurrent requests share one
        measurement.
        """
        asked = self._asked.get(pid)
        if asked is not None:
            asked[who] = tell
            return
        self._asked[pid] = {who: tell}
        task = asyncio.ensure_future(self._measure(pid))
        self._tasks.add(task)
        task.add_done_callback(self._measured)

    async def _measure(self, pid: int) -> None:
        try:
            found = await asyncio.to_thread(exact, pid)
        except RuntimeError:
            # No thread can be started, perhaps because of the call that is measured.
            found = exact(pid)
        finally:
            asked = self._asked.pop(pid)
        for tell in asked.values():
            tell(found)

    def _measured(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("The memory of calls could not be measured: %r", error)

    async def close(self) -> None:
        """Cancel all measurements."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MemoryLimit:
    """Memory limit of the process tree of one call, or of one constructor."""

    pid: int
    limit_mb: int
    #: Returns whether the call or constructor still runs there; after False, measuring stops.
    applies: Callable[[], bool]
    #: Called with the measured bytes if they exceed the limit.
    exceeded: Callable[[int], None]

    def passed_by(self, used_bytes: int) -> bool:
        """Return whether ``used_bytes`` exceed the limit."""
        return used_bytes > self.limit_mb << 20


class MemoryWatch:
    """Checks the process trees that have a memory limit; without any, no timer runs."""

    def __init__(self, recorder: Recorder) -> None:
        self.measures = Measures()
        self._recorder = recorder
        self._limits: list[MemoryLimit] = []
        #: Limits whose last measurement failed, which is logged once.
        self._failed: set[MemoryLimit] = set()
        self._loop = asyncio.get_running_loop()
        self._next_look: asyncio.TimerHandle | None = None

    def add(self, limit: MemoryLimit) -> None:
        """Watch a limit from now on."""
        self._limits.append(limit)
        if self._next_look is None:
            self._next_look = self._loop.call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        began = self._loop.time()
        self._limits = [limit for limit in self._limits if self._looked_at(limit)]
        self._failed.intersection_update(self._limits)
        # A tree of a thousand processes takes long to measure, and the loop has other work.
        took = self._loop.time() - began
        pause = max(_LOOK_S, _LOOK_SHARE * took)
        self._next_look = self._loop.call_later(pause, self._look) if self._limits else None

    def _looked_at(self, limit: MemoryLimit) -> bool:
        """Check one limit; return False if it no longer applies. Other limits survive an error."""
        try:
            if not limit.applies():
                return False
            if limit.passed_by(used(limit.pid)):
                self.measures.ask(limit.pid, limit, partial(_measured, limit))
        except Exception as error:  # noqa: BLE001 - counted, and checked again
            if limit not in self._failed:
                self._failed.add(limit)
                self._recorder.callback_failed(f"a look at the memory of {limit.pid}", error)
        return True

    async def close(self) -> None:
        """Stop watching."""
        self._limits.clear()
        if self._next_look is not None:
            self._next_look.cancel()
        await self.measures.close()


def _measured(limit: MemoryLimit, used_bytes: int) -> None:
    # The call may have finished during the measurement, and the process may have another.
    if limit.passed_by(used_bytes) and limit.applies():
        limit.exceeded(used_bytes)


class OomWatch:
    """Reports whether the kernel's counter of OOM kills rose since the last query."""

    def __init__(self) -> None:
        self._source, self._path = self._find()
        self._last = self._read()

    def rose(self) -> OomKill | None:
        """Return evidence of an OOM kill since the previous call of this method, or None."""
        now = self._read()
        more, self._last = now - self._last, now
        return OomKill(source=self._source, kills=more) if more > 0 else None

    def _find(self) -> tuple[str, Path | None]:
        for source, name in _COUNTERS:
            path = Path(name)
            if _kills(path) is not None:
                return source, path
        return "", None

    def _read(self) -> int:
        return (_kills(self._path) or 0) if self._path is not None else 0


def _kills(path: Path) -> int | None:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(" ")
        if name == "oom_kill":
            return int(value)
    return None
