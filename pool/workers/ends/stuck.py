"""Workers that outlive SIGKILL, because a process waits inside the kernel (state ``D``).

    overdue --> killed --> the process still exists, and its zygote answers --> StuckWorker
                                                                                 |
              the call finishes, alone; its slot and GPUs stay taken <-----------'

A volume or a driver that hangs causes that. The process exits when the kernel operation returns;
until then flashpool can only report it.
"""

from __future__ import annotations

from typing import Final

from flashpool.pool._child import processes
from flashpool.pool.workers.worker import StuckWorker, Worker

#: Most characters read of the name of the kernel function in which a process waits.
_WHERE: Final = 100


def of(worker: Worker, now: float) -> StuckWorker:
    """Return the record of a worker that is stuck from now on."""
    running = worker.running
    if running is None:
        return StuckWorker(since=now, call=None, label=worker.instance or "")
    return StuckWorker(since=now, call=running.id, label=running.call.label)


def process_ids(worker: Worker, known: set[int]) -> list[int]:
    """Return the processes that remain: the worker, or its orphans, which are children of its
    zygote now. ``known``: pids of workers, which are not orphans.
    """
    if worker.status is None:
        return [worker.pid]
    zygote = worker.zygote.pid
    return [] if zygote is None else [one for one in processes.children(zygote) if one not in known]


def remains(worker: Worker, known: set[int]) -> bool:
    """Return whether any process of this worker remains."""
    if worker.status is None:
        return processes.parent(worker.pid) == worker.zygote.pid
    return bool(process_ids(worker, known))


def waits_for(pid: int) -> str:
    """Return where in the kernel a process waits; empty if the kernel does not say."""
    try:
        with open(f"/proc/{pid}/wchan", encoding="ascii", errors="replace") as file:
            where = file.read(_WHERE)
    except OSError:
        return ""
    return "" if where == "0" else where
