"""Replaces the user's function or instance in a generated handler, so that it runs in its place.

    name = importlib.import_module(...).name     a function
    _instance = Name()                           an instance, with a method for each job

Handlers that `flash build` generates hold these objects as globals and call them with the job's
input as keyword arguments. The handler for several concurrent jobs awaits every result, which fails
for functions that are not coroutines; results of the replacements can always be awaited. The client
sends arguments that it cannot name as a list called ``args``. For places, see `places`.
"""

from __future__ import annotations

import functools
import inspect

from .places import current

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

_INSTANCE = "_instance"
_ARGS = "args"


def bind(module: ModuleType, names: list[str], *, awaits: bool) -> None:
    """Replace the functions that a handler calls; ``awaits``: it is a coroutine function."""
    place = _awaitable if awaits else _plain
    names_of = vars(module)
    if _INSTANCE in names_of:
        names_of[_INSTANCE] = _BoundInstance(names_of[_INSTANCE], place)
        return
    for name in names:
        if callable(function := names_of.get(name)):
            names_of[name] = place(function)


class _BoundInstance:
    """An instance whose methods run in their places."""

    def __init__(self, instance: Any, place: Callable[[Any], Any]) -> None:
        self._instance = instance
        self._place = place

    def __getattr__(self, name: str) -> Any:
        return self._place(getattr(self._instance, name))


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function for a handler that is not a coroutine, and so runs in a place already."""

    @functools.wraps(function)
    def call(**kwargs: Any) -> Any:
        value = function(*_positional(function, kwargs), **kwargs)
        return current().see_through(value) if inspect.isawaitable(value) else value

    return call


def _awaitable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function for a handler that is a coroutine, and so runs on the loop."""
    on_loop = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)

    @functools.wraps(function)
    async def call(**kwargs: Any) -> Any:
        args = _positional(function, kwargs)
        if on_loop:
            value = function(*args, **kwargs)
        else:
            value = await current().away(functools.partial(function, *args, **kwargs))
        return await value if inspect.isawaitable(value) else value

    return call


def _positional(function: Callable[..., Any], kwargs: dict[str, Any]) -> list[Any]:
    """Extract positional arguments, unless ``args`` is the name of a parameter."""
    given = kwargs.get(_ARGS)
    if not isinstance(given, list):
        return []
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a C function without a signature
        return []
    kinds = {one.kind for one in parameters}
    named = any(
        one.name == _ARGS and one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
        for one in parameters
    )
    takes_any = inspect.Parameter.VAR_KEYWORD in kinds
    if named or (takes_any and inspect.Parameter.VAR_POSITIONAL not in kinds):
        return []
    del kwargs[_ARGS]
    return given
