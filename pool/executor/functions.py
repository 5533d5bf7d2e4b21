"""A function on its way to workers: pickled once, with a key that identifies it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Hashable, Iterator
from types import CodeType
from typing import Any, Final

from flashpool.pool import pickling
from flashpool.pool._child.serialization import payload
from flashpool.pool.scheduling import touching

from .engine import close_all

#: A function whose own code uses none of these names touches nothing.
_SUSPICIOUS: Final = frozenset(
    (
        *("environ", "environb", "putenv", "unsetenv", "chdir", "path", "modules"),
        *("argv", "setlocale", "simplefilter", "filterwarnings", "gevent", "eventlet"),
    )
)
_NOTHING: Final[frozenset[str]] = frozenset()


class Function:
    """A function, pickled once for any number of calls."""

    def __init__(
        self,
        function: Callable[..., Any],
        dumps: pickling.Dumps,
        *,
        out_of_band: bool,
        reused: bool = False,
    ) -> None:
        plain = unwrapped(function)
        self.label = str(getattr(plain, "__qualname__", None) or type(plain).__qualname__)
        self.key = key_of(plain)
        self.touches = touches_of(plain)
        self._reused = reused
        self.dumps = dumps
        self.parcel = payload.pack(function, dumps, sealed=reused, out_of_band=out_of_band)

    def take(self) -> tuple[bytes, list[int]]:
        """Return the parcel for one call, with a descriptor that the call owns."""
        if self._reused:
            return payload.duplicate(self.parcel)
        taken, self.parcel = self.parcel, (b"", [])
        return taken

    def __del__(self) -> None:
        # Close parcels that no call took: calls of a map have copies, and other calls may never be
        # made.
        if hasattr(self, "parcel"):
            close_all(self.parcel[1])


def unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function inside partials."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def is_generator_function(function: Callable[..., Any]) -> bool:
    """Return whether calls of the function are streams of items."""
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def key_of(function: Callable[..., Any]) -> Hashable:
    """Return a key that is equal for calls of the same code."""
    code = getattr(function, "__code__", None)
    # The hash of the code separates cells of a notebook, each of which begins with line 1.
    own = hash(code) if isinstance(code, CodeType) else 0
    return (getattr(function, "__module__", None), getattr(function, "__qualname__", ""), own)


def touches_of(function: object) -> frozenset[str]:
    """Return what a function, or a class's methods, touch, judged by their source."""
    if isinstance(function, type):
        methods = [getattr(one, "__func__", one) for one in vars(function).values()]
        return _NOTHING.union(*(touches_of(one) for one in methods if inspect.isfunction(one)))
    code = getattr(function, "__code__", None)
    return _touches_of_code(code) if isinstance(code, CodeType) else _NOTHING


@functools.lru_cache(maxsize=1024)
def _touches_of_code(code: CodeType) -> frozenset[str]:
    if not any(_is_suspicious(one) for one in _codes(code)):
        return _NOTHING
    try:
        return frozenset(touching.touches(inspect.getsource(code)))
    except (OSError, TypeError):
        return frozenset(("env:*", "cwd", "argv", "locale", "warnings", "package:*"))


def _is_suspicious(code: CodeType) -> bool:
    texts = (one for one in code.co_consts if isinstance(one, str))
    return bool(_SUSPICIOUS.intersection(code.co_names)) or any("environ" in one for one in texts)


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield a code object, and all code objects in it."""
    left = [code]
    while left:
        yield (one := left.pop())
        left += [const for const in one.co_consts if isinstance(const, CodeType)]
