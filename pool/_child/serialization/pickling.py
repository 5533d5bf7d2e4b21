"""Pickles a value with as little imported as it needs.

    builtins, and classes and functions of importable modules  -> the C pickler alone
    anything of `BY_VALUE`, lambdas, closures, locals          -> cloudpickle, by value

cloudpickle takes 20 ms to import, and a zygote that has it needs half as long again for every fork.
Most results do not need it, so the first that does imports it.
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

    #: A pickler's class, or something like it: takes a file and a protocol.
    NewPickler = Callable[[io.BytesIO, int], Pickler]

#: A protocol that every Python from 3.8 on can read.
PROTOCOL = 5
#: A user's own, higher recursion limit would let the pickler overflow the C stack.
RECURSION_LIMIT = 10_000

#: The opcode without which a pickle names no class or function.
_NAMES = b"\x93"
#: Bytes of a pickle, without its large buffers, that is loaded to see whether it can be.
_TRIED = 8 * 1024 * 1024

_SCALARS = frozenset({type(None), bool, int, float, complex, str, bytes})


class TooLarge(Exception):
    """The pickle passed the limit; it was not finished."""


class _NeedsCloudpickle(Exception):
    """Something in the value is known to this process only."""


class ByReference(Pickler):
    """A C pickler that gives up on what another process could not import."""

    def reducer_override(self, obj: Any) -> Any:
        """Called for all but builtin types; NotImplemented means "go on"."""
        module = getattr(obj, "__module__", None)
        if module in BY_VALUE or is_lost(module):
            raise _NeedsCloudpickle
        return NotImplemented


class _Bounded(io.BytesIO):
    """A file that refuses to grow past a limit."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._left = limit

    def write(self, data: Any) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise TooLarge
        return super().write(data)


class RecursionGuard:
    """Brings a recursion limit that user code set into a range that works, for a while."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before = sys.getrecursionlimit()
        sys.setrecursionlimit(max(1000, min(self._before, RECURSION_LIMIT)))

    def __exit__(self, *_: object) -> None:
        sys.setrecursionlimit(self._before)


def is_too_deep(error: BaseException) -> bool:
    """Return whether pickling failed because of depth; cloudpickle wraps the RecursionError."""
    return isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError)


def dumps(value: object) -> bytes:
    """Pickle a value that its reader can load, as far as can be seen here.

    Raises whatever the value's own code raises, or the picklers.
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
    """Test a large value without its arrays, which are not copied for that.

    Values that are large without arrays are not tested: loading them would take as long again, and
    as much memory.
    """
    buffers: list[Any] = []

    def beside(kind: type[Pickler]) -> NewPickler:
        def new(file: io.BytesIO, protocol: int) -> Pickler:
            buffers.clear()  # another kind may have failed half-way
            return kind(file, protocol, buffer_callback=buffers.append)

        return new

    try:
        data = dump_with(value, beside(ByReference), lambda: beside(_cloudpickler()), _TRIED)
    except Exception:
        return  # it is large without them; or its own code lets it be pickled once only
    _try(data, buffers)


def _try(data: bytes, buffers: Iterable[Any] = ()) -> None:
    """Load it as its reader will.

    Raises:
        PicklingError: it cannot be loaded.
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
    """Pickle with the first kind and, where that does not do, with the second.

    ``by_value`` is called only when needed: it imports cloudpickle to make its answer.

    Raises:
        TooLarge: it takes more than ``limit`` bytes.
    """
    with RecursionGuard():
        # If cloudpickle is loaded already, user code may have registered modules with it.
        if "cloudpickle" not in sys.modules:
            try:
                return _dump(value, by_reference, limit)
            except (RecursionError, MemoryError, TooLarge):
                raise  # cloudpickle would fare no better
            except Exception:
                pass  # its own attempt says best what is wrong
        return _dump(value, by_value(), limit)


def _dump(value: object, new: NewPickler, limit: int | None) -> bytes:
    file = io.BytesIO() if limit is None else _Bounded(limit)
    new(file, PROTOCOL).dump(value)
    return file.getvalue()


def _cloudpickler() -> type[Pickler]:
    from .by_value.pickler import Pickler

    return Pickler
