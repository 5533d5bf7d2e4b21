"""Whether a task waits for a function that runs in a thread, which no cancelling ends.

Frameworks run functions that are no coroutines in threads (`anyio.to_thread`, `asyncio.to_thread`).
A task that is cancelled there is over at once, and its function runs on, for ever perhaps, with
nobody left who knows of it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from typing import Any

#: Who waits for a thread, by the names of functions and what their files' names have in them.
_WAITERS = {"run_sync_in_worker_thread": "anyio", "to_thread": "asyncio"}
#: Coroutines that wait for each other.
_DEEP = 1000


def is_in_thread(task: asyncio.Task[Any]) -> bool:
    """Whether a thread runs for it now; what a task of its own waits for is that task's matter."""
    found: Any = task.get_coro()
    for _ in range(_DEEP):
        code = getattr(found, "cr_code", None) or getattr(found, "gi_code", None)
        if code is None:
            return False
        awaited = getattr(found, "cr_await", None) or getattr(found, "gi_yieldfrom", None)
        if _WAITERS.get(code.co_name, "\0") in code.co_filename:
            # Before it has its thread, it waits for coroutines of its own.
            return awaited is not None and not hasattr(awaited, "cr_code")
        found = awaited
    return False
