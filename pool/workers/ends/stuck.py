"""Workers that outlive SIGKILL, because a process waits inside the kernel (state ``D``).

    over its time --> killed --> it is still there, and its zygote answers --> StuckWorker
                                                                                |
                 its call ends, alone; its slot and GPUs stay taken <-----------'

A volume or a driver that hangs does that. The process goes when what it waits for answers;
until then nothing can be done about it but to say so.
"""

from __future__ import annotations

from typing import Final

from flashpool.pool._child import processes
from flashpool.pool.workers.worker import StuckWorker, Worker

#: Characters of the kernel's name for what a process waits for.
_WHERE: Final = 100


def of(worker: Worker, now: float) -> StuckWorker:
    """It is stuck from now on."""
    running = worker.running
    if running is None:
        return StuckWorker(since=now, call=None, label=worker.instance or "")
    return StuckWorker(since=now, call=running.id, label=running.call.label)


def process_ids(worker: Worker, known: set[int]) -> list[int]:
    """What there is of it: itself, or what it left, which are its zygote's children now."""
    if worker.status is None:
        return [worker.pid]
    zygote = worker.zygote.pid
    return [] if zygote is None else [one for one in processes.children(zygote) if one not in known]


def remains(worker: Worker, known: set[int]) -> bool:
    """Whether there is anything of it, or the news of its end was lost."""
    if worker.status is None:
        return processes.parent(worker.pid) == worker.zygote.pid
    return bool(process_ids(worker, known))


def waits_for(pid: int) -> str:
    """Where in the kernel a process waits, as far as the kernel tells."""
    try:
        with open(f"/proc/{pid}/wchan", encoding="ascii", errors="replace") as file:
            where = file.read(_WHERE)
    except OSError:
        return ""
    return "" if where == "0" else where
