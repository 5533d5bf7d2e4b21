"""Waits that last until the work has ended, however often they are cancelled.

Cancelling a request cancels its work; so do functions that run parts of it in parallel, and the
exit of the process. Before Python 3.12, `asyncio.wait_for` stops waiting when it is cancelled a
second time: its work then continues unattended, with files, processes and claims that it would have
released. `run_in_thread` keeps waiting for a thread, which cannot be cancelled: the thread would
write into a directory that is being deleted, or rename one that is half deleted. Results that such
a thread produces for a cancelled call (a claim, a scratch directory) are undone, because other
processes would wait for them. Only a disk that hangs ends such a wait (`DiskHangs`).

    waiter --> thread makes something --> handed over
       '-- cancelled: made already? undone here; otherwise the thread undoes it once it is made
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Generic, ParamSpec, TypeVar

from .disk_hangs import DiskHangs
from .disk_threads import run_in_thread

__all__ = ["run_in_thread_or_undo", "run_in_thread_shielded", "wait_for_shielded", "wait_shielded"]

#: Length of one turn in seconds: a longer turn means that the process was suspended.
_TURN_S: Final = 1.0

T = TypeVar("T")
P = ParamSpec("P")


async def wait_shielded(work: Awaitable[T]) -> T:
    """Wait for the work to end; raise a cancellation that arrived meanwhile afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as again:
            cancelled = again
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # marks the error as seen, so that asyncio does not report it
        raise cancelled
    return task.result()


async def run_in_thread_shielded(work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """Run in a thread; raise a cancellation only when the thread is done.

    Waits as long as the thread takes: for short work, or work on this process's own files.
    """
    return await wait_shielded(run_in_thread(work, *args, **named))


async def _wait_while_running(task: asyncio.Task[Any], limit_s: float | None) -> None:
    """Wait for a limited time, not counting time in which this process was suspended.

    In a container that is paused, the work is paused as well.
    """
    left = limit_s
    while not task.done() and (left is None or left > 0.0):
        began = time.monotonic()
        turn = None if left is None else min(left, _TURN_S)
        await asyncio.wait({task}, timeout=turn)
        if left is not None and turn is not None:
            left -= min(time.monotonic() - began, turn)


async def wait_for_shielded(work: Coroutine[Any, Any, T], limit_s: float | None) -> T:
    """Return the result of some work.

    If the waiter is cancelled or the limit passes, cancel the work and wait for its end.

    Raises:
        asyncio.TimeoutError: the work had not ended in time.
    """
    task = asyncio.ensure_future(work)
    try:
        await _wait_while_running(task, limit_s)
        late = not task.done()
    finally:
        if not task.done():
            task.cancel()
            await wait_shielded(asyncio.wait({task}))
    if late and task.cancelled():
        raise asyncio.TimeoutError
    return task.result()


class _Handover(Generic[T]):
    def __init__(self, make: Callable[[], T], undo: Callable[[T], object]) -> None:
        self._make = make
        self._undo = undo
        self._lock = threading.Lock()
        self._cancelled = False
        self._made: list[T] = []

    def work(self) -> T:
        made = self._make()
        with self._lock:
            if not self._cancelled:
                self._made.append(made)
                return made
        self._undo(made)
        return made

    def cancel(self) -> None:
        self.leave()
        for made in self._made:
            self._undo(made)

    def leave(self) -> None:
        with self._lock:
            self._cancelled = True


async def run_in_thread_or_undo(make: Callable[[], T], undo: Callable[[T], object]) -> T:
    """Create something in a thread; if the waiter is cancelled, undo it."""
    handover = _Handover(make, undo)
    try:
        return await run_in_thread(handover.work)
    except DiskHangs:
        # The thread undoes what it made, if it ever returns.
        handover.leave()
        raise
    except asyncio.CancelledError:
        await run_in_thread_shielded(handover.cancel)
        raise
