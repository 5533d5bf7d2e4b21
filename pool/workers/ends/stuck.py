"""Workers that outlive SIGKILL, because a process waits inside the kernel (state ``D``).

    over its time --> killed --> it is still there, and its zygote answers --> StuckWorker
                                                                                |
                 its call ends, alone; its slot and GPUs stay taken <-----------'

A volume or a driver that hangs causes that. The process exits when the kernel operation returns;
until then it can only be reported.
"""

from __future__ import annotations

from typing import Final

from flashpool.pool._child import processes
from flashpool.pool.workers.worker import StuckWorker, Worker

#: Characters of the kernel's name for what a process waits for.
_WHERE: Final = 100


def of(worker: Worker, now: float) -> StuckWorker:
    """Mark a worker as stuck from now on."""
    running = worker.running
    if running is None:
        return StuckWorker(since=now, call=None, label=worker.instance or "")
    return StuckWorker(since=now, call=running.id, label=running.call.label)


def process_ids(worker: Worker, known: set[int]) -> list[int]:
    """Return its remaining processes: the worker, or its orphans, which are children of its zygote
    now.
    """
    if worker.status is None:
        return [worker.pid]
    zygote = worker.zygote.pid
    return [] if zygote is None else [one for one in processes.children(zygote) if one not in known]


def remains(worker: Worker, known: set[int]) -> bool:
    """Return whether any process of it remains, or the report of its end was lost."""
    if worker.status is None:
        return processes.parent(worker.pid) == worker.zygote.pid
    return bool(process_ids(worker, known))


def waits_for(pid: int) -> str:
    """Return where in the kernel a process waits, if the kernel says so."""
    try:
        with open(f"/proc/{pid}/wchan", encoding="ascii", errors="replace") as file:
            where = file.read(_WHERE)
    except OSError:
        return ""
    return "" if where == "0" else where
