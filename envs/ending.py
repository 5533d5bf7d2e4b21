"""Waiting that lasts to the end of what is waited for, however often it is cancelled.

A request that leaves cancels its work, and so do then those on the way who run parts of it
side by side, and the end of the process. `asyncio.wait_for` waits no longer when it is
cancelled once more, before Python 3.12: what it ran is left to itself, with the files,
processes and claims that it would have let go of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

__all__ = ["to_its_end", "within"]

T = TypeVar("T")


async def to_its_end(work: Awaitable[object]) -> None:
    """See it through; a cancellation that came meanwhile is taken up afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as again:
            cancelled = again
    if cancelled is not None:
        raise cancelled
    task.result()


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
