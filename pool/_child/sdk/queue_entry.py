"""Loaded as the module of an app: a deployed queue function of SDK 2.0, as a handler of jobs.

    FLASHPOOL_SDK_ENTRY  {"module", "resource", "paths"}  -->  the user's module  -->  its FunctionHandle
                                                          -->  its start hook     -->  handler(job)

The input of a job is the keyword arguments of the function. A client sends ``{"__empty": true}`` for none,
because the platform drops an empty input.
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
    """The handler of the resource, its start hook run. Raises whatever user code raises."""
    module, resource = load_module()
    handle = _found(module, resource)
    if (hook := handle._init_fn) is not None:
        value = hook()
        if inspect.isawaitable(value):
            # The worker's, which does not run yet; what the hook leaves on it is there for jobs.
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
    """The keyword arguments that a job's input stands for."""
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
    """Load the handler when it is requested: a process that only imports this module is not a
    worker.
    """
    if name == "handler":
        return load()
    raise AttributeError(name)
