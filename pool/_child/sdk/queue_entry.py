"""The module of an app that is a deployed queue function of SDK 2.0; ``handler`` handles jobs.

    FLASHPOOL_SDK_ENTRY  {"module", "resource", "paths"}
        -->  the user's module  -->  FunctionHandle  -->  start hook  -->  handler(job)

The input of a job holds the keyword arguments of the function. If there are no arguments, a client
sends ``{"__empty": true}``, because the platform drops an empty input.
"""

from __future__ import annotations

import asyncio
import inspect
import sys

from . import handles
from .entry import NotServed, load_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_EMPTY = "__empty"


def load() -> Callable[..., Any]:
    """Run the start hook, and return the resource's handler; raise whatever user code raises."""
    module, resource = load_module()
    handle = _found(module, resource)
    if (hook := handle._init_fn) is not None:
        value = hook()
        if inspect.isawaitable(value):
            # On the worker's loop, which does not run yet: tasks of the hook continue for jobs.
            asyncio.get_event_loop().run_until_complete(_awaited(value))
    return handler_of(handle._fn)


def handler_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a handler that takes a job and calls the function with its input."""
    if inspect.iscoroutinefunction(function):

        async def on_loop(job: dict[str, Any]) -> Any:
            return await function(**arguments(job["input"]))

        return on_loop
    return lambda job: function(**arguments(job["input"]))


def arguments(given: Any) -> dict[str, Any]:
    """Return the keyword arguments in a job's input."""
    if not isinstance(given, dict):
        raise TypeError(
            f"the input of a job is an object of keyword arguments, not {type(given).__name__}"
        )
    return {name: value for name, value in given.items() if name != _EMPTY}


async def _awaited(value: Any) -> Any:
    return await value


def _found(module: Any, resource: str) -> Any:
    kinds = sys.modules.get(handles.MODULE)
    found = [] if kinds is None else handles.handles_in(module, kinds.FunctionHandle)
    for handle in found:
        if handle.spec.name == resource:
            return handle
    there = ", ".join(sorted(one.spec.name for one in found)) or "none"
    raise NotServed(
        f"{module.__name__} has no @app.queue of the name {resource!r}; it has: {there}"
    )


def __getattr__(name: str) -> Any:
    """Load ``handler`` at the first access: not every process that imports this is a worker."""
    if name == "handler":
        return load()
    raise AttributeError(name)
