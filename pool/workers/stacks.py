"""The current Python stacks of a worker, which it writes to a shared file on a signal.

    here: empty the file --STACK--> zygote --signal--> worker's C handler writes, the call goes on
          read once the handler has returned <---------'

The handler writes piece by piece, and a busy machine may stop the worker between two pieces. While
the handler runs, the kernel blocks the signal in its thread, the main one unless that thread itself
blocks the signal: /proc shows when the dump is complete. The dump does not appear in the call's
output. If no stack comes, /proc shows why: the process blocks the signal, ignores it, is stopped,
or has become another program.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

from flashpool.pool._child import processes
from flashpool.pool._child.fork_server import stack_dumps

from .output_buffer import without_our_frames
from .worker import Worker

#: Seconds in which a dump must begin, and in which it must be complete.
ANSWER_S: Final = 2.0
_WHOLE_S: Final = 8.0
#: Seconds between two checks of the file; and the number of checks without growth after which a
#: dump is complete, if no handler runs.
_LOOK_S: Final = 0.01
_QUIET: Final = 3
_ENDED: Final = "its process has ended"
_NAME: Final = stack_dumps.SIGNAL.name


async def of_worker(worker: Worker) -> tuple[str, str]:
    """Return the stacks and an empty string, or an empty string and why there are no stacks."""
    zygote, file = worker.zygote, worker.zygote.stack_file
    if file.fd < 0:
        return "", "this system has no files in memory (memfd_create), which stacks are written to"
    async with file.turn:
        if not _is_there(worker):
            return "", _ENDED
        if not _has(worker.pid, "SigCgt"):
            return "", _why_not_taken(worker.pid)
        blocked = _has(worker.pid, "SigBlk")
        file.empty()
        zygote.ask_for_stacks(worker.pid)
        if text := await _arriving(worker, blocked):
            return text, ""
        return "", _why_silent(worker.pid) if _is_there(worker) else _ENDED


def _is_there(worker: Worker) -> bool:
    return worker.status is None


async def _arriving(worker: Worker, blocked: bool) -> str:
    """Wait for the dump and return it; ``blocked``: the main thread itself blocks the signal."""
    file = worker.zygote.stack_file
    began = time.monotonic()
    size = quiet = 0
    while time.monotonic() - began < (_WHOLE_S if size else ANSWER_S):
        await asyncio.sleep(_LOOK_S)
        before, size = size, file.size()
        quiet = quiet + 1 if size == before else 0
        if size and quiet >= _QUIET and (blocked or not _has(worker.pid, "SigBlk")):
            break
    return without_our_frames(file.read()).decode("utf-8", "replace").strip()


def _why_not_taken(pid: int) -> str:
    if not processes.state(pid):
        return _ENDED
    return (
        f"its process does not answer {_NAME}: the call's code has set that signal to be ignored or "
        "to its default, or has become another program (exec)"
    )


def _why_silent(pid: int) -> str:
    state = processes.state(pid)
    if state in ("T", "t"):
        return "its process is stopped (SIGSTOP, or a debugger)"
    if state == "D":
        return "its process is blocked in the kernel by a disk or device, and handles no signal"
    # The signal is pending, or about to be: a busy zygote may not have sent it yet.
    if any(_has(pid, mask) for mask in ("ShdPnd", "SigPnd", "SigBlk")):
        return f"the call's code blocks {_NAME}, which asks for stacks"
    return (
        f"the call's code handles {_NAME} itself, the signal that asks for stacks, or "
        "has closed the file for the stacks"
    )


def _has(pid: int, mask: str) -> bool:
    """Return whether the signal is in this mask of a process's main thread."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    for line in lines:
        name, _, value = line.partition(":")
        if name == mask:
            return bool(int(value.strip(), 16) >> (stack_dumps.SIGNAL - 1) & 1)
    return False
