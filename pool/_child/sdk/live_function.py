"""A live function with a start hook: its module runs once, then the hook, then any number of calls.

    LOAD -> request -> module -> handle -> hook() -> StayingFunction
    CALL -> request -> StayingFunction(*args)      one at a time, or RUNPOD_MAX_CONCURRENCY together

Effects of the module and the hook (globals, models, the working directory) persist, as in a
deployed function. If calls may run together, functions that are not coroutines run in threads.
"""

from __future__ import annotations

import inspect
import os
from contextlib import suppress

from ..serialization import flash
from . import handles

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from typing import Any

    from ..running.resident_loop import ResidentLoop

_CONCURRENCY = "RUNPOD_MAX_CONCURRENCY"
_END = object()


def load(body: bytes, on_loop: Callable[[], ResidentLoop]) -> Any:
    """Load a request's function, and run its start hook; raise whatever user code raises.

    Raises:
        NeedsProcess: the function has no start hook.
    """
    module, name = flash.run_module(body)
    handle = handles.handle_of(module, name, vars(module).get(name))
    if getattr(handle, "_init_fn", None) is None:
        raise handles.NeedsProcess(f"{name!r} has no start hook")
    run_hook(handle, on_loop)
    together = concurrency()
    if together == 1:
        return StayingFunction(handle._fn)
    on_loop().allow_threads(together)
    return OverlappingFunction(handle._fn)


def run_hook(handle: Any, on_loop: Callable[[], ResidentLoop]) -> None:
    """Run the start hook of a function, if it has one, to its end."""
    hook = getattr(handle, "_init_fn", None)
    if hook is None:
        return
    value = hook()
    if inspect.isawaitable(value):
        on_loop().run(_awaited(value))


async def _awaited(value: Any) -> Any:
    return await value


def concurrency() -> int:
    """Return how many calls of the function may run together: the platform's setting, or 1."""
    with suppress(ValueError):
        return max(1, int(os.environ.get(_CONCURRENCY, "1")))
    return 1


class StayingFunction:
    """A function whose calls run one at a time."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.function(*args, **kwargs)


class OverlappingFunction:
    """A function whose calls may run together: on the loop, or in threads beside it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.on_loop = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        if self.on_loop:
            value = self.function(*args, **kwargs)
            return await value if inspect.isawaitable(value) else value
        import asyncio

        value = await asyncio.to_thread(self.function, *args, **kwargs)
        return _in_threads(value) if inspect.isgenerator(value) else value


async def _in_threads(items: Iterator[Any]) -> AsyncIterator[Any]:
    import asyncio

    while (item := await asyncio.to_thread(next, items, _END)) is not _END:
        yield item
