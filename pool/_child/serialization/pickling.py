"""Pickles a value, and imports cloudpickle only if necessary.

    builtins, and classes and functions of importable modules  -> the C pickler alone
    anything of `BY_VALUE`, lambdas, closures, locals          -> cloudpickle, by value

Importing cloudpickle takes 20 ms, and a zygote that has imported it takes half as long again for
every fork. Most results do not need it, so the first result that does imports it.
"""

from __future__ import annotations

import io
import sys
from _pickle import Pickler, PicklingError, loads
from _pickle import dumps as _c_dumps

from .by_value.lost_modules import is_lost
from .live_module import BY_VALUE

__all__ = [
    "ByReference",
    "Pickler",
    "RecursionGuard",
    "TooLarge",
    "dump_with",
    "dumps",
    "is_too_deep",
    "loads",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    #: The class of a pickler, or a function like it: takes a file and a protocol.
    NewPickler = Callable[[io.BytesIO, int], Pickler]

#: A protocol that every Python from 3.8 on can read.
PROTOCOL = 5
#: With a higher recursion limit, set by user code, the pickler could overflow the C stack.
RECURSION_LIMIT = 10_000

#: The opcode without which a pickle names no class or function.
_NAMES = b"\x93"
#: Largest pickle, without its large buffers, that is loaded as a test.
_TRIED = 8 * 1024 * 1024

_SCALARS = frozenset({type(None), bool, int, float, complex, str, bytes})


class TooLarge(Exception):
    """The pickle passed the limit; it was not finished."""


class _NeedsCloudpickle(Exception):
    """The value contains an object that only this process has."""


class ByReference(Pickler):
    """A C pickler that raises for objects that another process could not import."""

    def reducer_override(self, obj: Any) -> Any:
        """See `pickle.Pickler`; NotImplemented means "as usual"."""
        module = getattr(obj, "__module__", None)
        if module in BY_VALUE or is_lost(module):
            raise _NeedsCloudpickle
        return NotImplemented


class _Bounded(io.BytesIO):
    """A file in memory that raises when it would grow past a limit."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._left = limit

    def write(self, data: Any) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise TooLarge
        return super().write(data)


class RecursionGuard:
    """A context in which the recursion limit, which user code may have set, is in a safe range."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before = sys.getrecursionlimit()
        sys.setrecursionlimit(max(1000, min(self._before, RECURSION_LIMIT)))

    def __exit__(self, *_: object) -> None:
        sys.setrecursionlimit(self._before)


def is_too_deep(error: BaseException) -> bool:
    """Return whether pickling failed because of recursion, which cloudpickle may wrap."""
    return isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError)


def dumps(value: object) -> bytes:
    """Pickle a value, and check that it can be loaded.

    Raises whatever the value's own code or a pickler raises.
    """
    if type(value) in _SCALARS:
        return _c_dumps(value, PROTOCOL)
    data = dump_with(value, ByReference, _cloudpickler, None)
    if _NAMES in data:
        if len(data) <= _TRIED:
            _try(data)
        else:
            _try_around_buffers(value)
    return data


def _try_around_buffers(value: object) -> None:
    """Test a large value without its arrays, which are not copied.

    A value that is large without its arrays is not tested: loading it would take as long again, and
    as much memory.
    """
    buffers: list[Any] = []

    def beside(kind: type[Pickler]) -> NewPickler:
        def new(file: io.BytesIO, protocol: int) -> Pickler:
            buffers.clear()  # the other pickler may have failed half-way
            return kind(file, protocol, buffer_callback=buffers.append)

        return new

    try:
        data = dump_with(value, beside(ByReference), lambda: beside(_cloudpickler()), _TRIED)
    except Exception:
        return  # the value is large without arrays, or can be pickled only once
    _try(data, buffers)


def _try(data: bytes, buffers: Iterable[Any] = ()) -> None:
    """Load a pickle as its reader will.

    Raises:
        PicklingError: the pickle cannot be loaded.
    """
    from .by_value.known_classes import load

    try:
        load(data, buffers=buffers)
    except BaseException as error:
        why = f"{type(error).__name__}: {error}"
        raise PicklingError(f"it can be written, but not read again: {why}") from error


def dump_with(
    value: object,
    by_reference: NewPickler,
    by_value: Callable[[], NewPickler],
    limit: int | None,
) -> bytes:
    """Pickle with the first pickler or, if that fails, with the second.

    ``by_value``: called only if needed; it imports cloudpickle and returns the second pickler.

    Raises:
        TooLarge: the pickle takes more than ``limit`` bytes.
    """
    with RecursionGuard():
        # If cloudpickle is loaded already, user code may have registered modules with it.
        if "cloudpickle" not in sys.modules:
            try:
                return _dump(value, by_reference, limit)
            except (RecursionError, MemoryError, TooLarge):
                raise  # cloudpickle would fare no better
            except Exception:
                pass  # if cloudpickle fails, too, its error says best why
        return _dump(value, by_value(), limit)


def _dump(value: object, new: NewPickler, limit: int | None) -> bytes:
    file = io.BytesIO() if limit is None else _Bounded(limit)
    new(file, PROTOCOL).dump(value)
    return file.getvalue()


def _cloudpickler() -> type[Pickler]:
    from .by_value.pickler import Pickler

    return Pickler
