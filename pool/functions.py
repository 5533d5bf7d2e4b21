"""A function on its way to workers: pickled once, with what tells it from others."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Hashable
from typing import Any

from . import pickling
from ._child import payload
from .engine import close_all


class Function:
    """A function, pickled once for any number of calls."""

    def __init__(
        self, function: Callable[..., Any], dumps: pickling.Dumps, *, reused: bool = False
    ) -> None:
        plain = unwrapped(function)
        self.label = str(getattr(plain, "__qualname__", None) or type(plain).__qualname__)
        self.key = key_of(plain)
        self._reused = reused
        self.dumps = dumps
        self.parcel = payload.pack(function, dumps, sealed=reused)

    def take(self) -> tuple[bytes, list[int]]:
        """The parcel for one call, with a descriptor that the call may own."""
        if self._reused:
            return payload.duplicate(self.parcel)
        taken, self.parcel = self.parcel, (b"", [])
        return taken

    def __del__(self) -> None:
        # Whatever was not taken: all calls of a map have copies, others may not have been made.
        if hasattr(self, "parcel"):
            close_all(self.parcel[1])


def unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """What is inside of partials."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def is_generator_function(function: Callable[..., Any]) -> bool:
    """Whether its call is to be a stream of items."""
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def key_of(function: Callable[..., Any]) -> Hashable:
    """Equal for calls of the same code."""
    code = getattr(function, "__code__", None)
    line = code.co_firstlineno if code is not None else 0
    return (getattr(function, "__module__", None), getattr(function, "__qualname__", ""), line)
