"""Determines whether a task waits for a function in a thread, which cannot be cancelled.

Frameworks run functions that are not coroutines in threads (`anyio.to_thread`,
`asyncio.to_thread`). A task that is cancelled there ends at once, and its function continues
unobserved, perhaps forever.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from typing import Any

#: Functions that wait for a thread, by their names and parts of their files' names.
_WAITERS = {"run_sync_in_worker_thread": "anyio", "to_thread": "asyncio"}
#: Coroutines that wait for each other.
_DEEP = 1000


def is_in_thread(task: asyncio.Task[Any]) -> bool:
    """Return whether a thread runs for the task now; tasks that it waits for are checked
    separately.
    """
    found: Any = task.get_coro()
    for _ in range(_DEEP):
        code = getattr(found, "cr_code", None) or getattr(found, "gi_code", None)
        if code is None:
            return False
        awaited = getattr(found, "cr_await", None) or getattr(found, "gi_yieldfrom", None)
        if _WAITERS.get(code.co_name, "\0") in code.co_filename:
            # Before it has its thread, the task waits for coroutines.
            return awaited is not None and not hasattr(awaited, "cr_code")
        found = awaited
    return False
