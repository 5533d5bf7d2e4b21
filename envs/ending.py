"""Waiting that lasts to the end of what is waited for, however often it is cancelled.

A request that leaves cancels its work, and so do then those on the way who run parts of it
side by side, and the end of the process. `asyncio.wait_for` waits no longer when it is
cancelled once more, before Python 3.12: what it ran is left to itself, with the files,
processes and claims that it would have let go of. `asyncio.to_thread` never waits for a
thread that cannot be cancelled: it would go on to write into a directory that is being
deleted, or rename what is half gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

__all__ = ["thread_to_its_end", "to_its_end", "within"]

T = TypeVar("T")
P = ParamSpec("P")


async def to_its_end(work: Awaitable[T]) -> T:
    """See it through; a cancellation that came meanwhile is taken up afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as again:
            cancelled = again
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # looked at, so that it is not reported as lost
        raise cancelled
    return task.result()


async def thread_to_its_end(work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """In a thread; whoever is cancelled leaves when nothing works in the background any more.

    Waits for as long as the thread takes: for work that is short, or whose files are ours.
    """
    return await to_its_end(asyncio.to_thread(work, *args, **named))


async def within(work: Coroutine[Any, Any, T], limit_s: float | None) -> T:
    """Its result; cancelled, or past the limit, it is cancelled and seen to its end.

    Raises:
        asyncio.TimeoutError: it had not ended in time.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=limit_s)
        late = not task.done()
    finally:
        if not task.done():
            task.cancel()
            await to_its_end(asyncio.wait({task}))
    if late and task.cancelled():
        raise asyncio.TimeoutError
    return task.result()
