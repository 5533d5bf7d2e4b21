"""Determines whether a task waits for a function in a thread, which nothing can cancel.

Frameworks run functions that are not coroutines in threads (`anyio.to_thread`,
`asyncio.to_thread`). A task that is cancelled there ends at once, but the function continues
unobserved, perhaps forever.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from typing import Any

#: Functions that wait for a thread: names, and a part of the name of each one's file.
_WAITERS = {"run_sync_in_worker_thread": "anyio", "to_thread": "asyncio"}
#: Longest chain of coroutines to follow.
_DEEP = 1000


def is_in_thread(task: asyncio.Task[Any]) -> bool:
    """Return whether the task itself waits for a thread now; tasks it waits for do not count."""
    found: Any = task.get_coro()
    for _ in range(_DEEP):
        code = getattr(found, "cr_code", None) or getattr(found, "gi_code", None)
        if code is None:
            return False
        awaited = getattr(found, "cr_await", None) or getattr(found, "gi_yieldfrom", None)
        if _WAITERS.get(code.co_name, "\0") in code.co_filename:
            # Until the thread is started, the task waits for coroutines.
            return awaited is not None and not hasattr(awaited, "cr_code")
        found = awaited
    return False
