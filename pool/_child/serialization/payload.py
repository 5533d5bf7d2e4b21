"""Pickles whose large buffers travel in shared memory instead of through a socket.

A value becomes a *parcel*: a few bytes for the message, and at most one descriptor.

    HEAD (flags, number of spans, length of pickle) | SPAN (offset, length)* | pickle
                                  |
                                  v  each span is one buffer of pickle protocol 5
    descriptor (memfd): ....buffer....pad....buffer....pad..

The descriptor refers to shared memory, see `shared_buffers`. The reader maps it and unpickles views
of the mapping: nothing is copied, and the memory is freed with the last array that uses it. A
pickle that is itself large (a huge ``bytes``, many objects) is also written to the shared memory,
as the first span, so that messages stay small.

A *call* is a kind and two parcels, function and arguments; they may be packed separately, so that
`Pool.map` pickles its function once. A *result* is one parcel.

A result of about the size of its call's arguments returns in the memory in which they came. Data
that is in that memory already (an argument changed in place, or part of it) is not copied.
"""

from __future__ import annotations

import os
import pickle
import struct

from . import function_unpickling, shared_buffers
from .by_value import known_classes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Parcel = tuple[bytes, list[int]]
    Dumps = Callable[[Any, "Buffers | None"], bytes]

#: Buffers of at least this size travel in shared memory; for smaller buffers, a descriptor costs
#: more than it saves.
OUT_OF_BAND = 64 * 1024
#: A longer pickle is written to shared memory, too.
LARGE_PICKLE = 1024 * 1024
#: flags, number of spans, length of the pickle.
HEAD = struct.Struct("<BIQ")
#: offset and length in the descriptor.
SPAN = struct.Struct("<QQ")
_HAS_FD = 1
_PICKLE_IN_FD = 2

#: Kinds of call.
ONE = b"1"
EACH = b"*"

#: Types for which `pickle` itself suffices.
PLAIN = frozenset((type(None), bool, int, float, str, bytes))


# In the worker.


def load_call(body: bytes, fds: list[int], each: Callable[..., Any]) -> tuple[Any, Any, Any]:
    """Return a function, its positional and its keyword arguments.

    ``each``: runs a function with several tuples of arguments, for a chunk of a map.
    """
    try:
        function, at = unpack(body, len(ONE), fds, loads=function_unpickling.load)
        arguments, _ = unpack(body, at, fds, keep=True)
    finally:
        _close(fds)
    if body[: len(EACH)] == EACH:
        return each, (function, arguments), {}
    args, kwargs = arguments
    return function, args, kwargs


def dump_result(value: Any, last: bool = False) -> Parcel:
    """Pack a result. ``last``: the process exits now, so nothing changes the value later.

    Raises:
        Unserializable: the value cannot be pickled.
    """
    try:
        return pack(value, in_place=last)
    except Exception as error:
        from .exception_pickling import Unserializable

        message = f"the result, of type {type(value).__qualname__}, cannot be pickled: {say(error)}"
        raise Unserializable(message) from error


def say(error: BaseException) -> str:
    """Describe an error in one line."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # the user's __str__ raised
        return type(error).__name__


# In the program.


def pack_call(function: Parcel, arguments: Parcel, kind: bytes = ONE) -> Parcel:
    """Return the message of a call; it takes over the descriptors of both parcels."""
    return kind + function[0] + arguments[0], function[1] + arguments[1]


def duplicate(parcel: Parcel) -> Parcel:
    """Return the same parcel with duplicated descriptors; it must have been packed ``sealed``."""
    return parcel[0], [os.dup(fd) for fd in parcel[1]]


def load_result(body: bytes, fds: list[int]) -> Any:
    """Return the value of a result, and close its descriptors."""
    try:
        return unpack(body, 0, fds)[0]
    finally:
        _close(fds)


# In the worker and in the program.


class Buffers:
    """Collects the buffers of one pickle that are large enough for shared memory."""

    __slots__ = ("views",)

    def __init__(self) -> None:
        self.views: list[memoryview] = []

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        """Called by the pickler; return True to leave the buffer in the pickle."""
        try:
            view = buffer.raw()
        except BufferError:
            return True  # not contiguous
        if view.nbytes < OUT_OF_BAND:
            return True
        self.views.append(view)
        return False


def dumps(value: Any, buffers: Buffers | None) -> bytes:
    """Pickle a value, in a worker."""
    from . import pickling

    def by_reference(file: Any, protocol: int) -> Any:
        return pickling.ByReference(file, protocol, buffer_callback=buffers)

    def with_cloudpickle() -> Any:
        from .by_value.pickler import Pickler

        if buffers is not None:
            buffers.views.clear()  # drops those of the first attempt
        return lambda file, protocol: Pickler(file, protocol, buffers)

    return pickling.dump_with(value, by_reference, with_cloudpickle, None)


def pack(
    value: Any,
    dumps: Dumps = dumps,
    *,
    sealed: bool = False,
    out_of_band: bool = True,
    in_place: bool = False,
) -> Parcel:
    """Pack a value into a parcel; the caller owns its descriptor, if any."""
    if type(value) in PLAIN:
        data = pickle.dumps(value, 5)
        views = []
    else:
        buffers = Buffers() if out_of_band else None
        data = dumps(value, buffers)
        views = buffers.views if buffers is not None else []
    if not out_of_band or (not views and len(data) <= LARGE_PICKLE):
        return HEAD.pack(0, 0, len(data)) + data, []
    try:
        return _pack_out_of_band(data, views, sealed, in_place)
    except OSError:
        # Descriptors or shared memory are short: send the buffers in the message, which is slower.
        del data, views
        return pack(value, dumps, out_of_band=False)


def _pack_out_of_band(
    data: bytes, buffers: list[memoryview], sealed: bool, in_place: bool
) -> Parcel:
    flags = _HAS_FD
    found = shared_buffers.reuse(buffers) if in_place and len(data) <= LARGE_PICKLE else None
    if found is None:
        if len(data) > LARGE_PICKLE:
            flags |= _PICKLE_IN_FD
            buffers = [memoryview(data), *buffers]
            data = b""
        found = shared_buffers.write(buffers, sealed=sealed)
    fd, spans = found
    head = HEAD.pack(flags, len(spans), len(data))
    return head + b"".join(SPAN.pack(*span) for span in spans) + data, [fd]


def unpack(
    body: bytes,
    at: int,
    fds: list[int],
    *,
    keep: bool = False,
    loads: Callable[[memoryview], Any] = known_classes.load,
) -> tuple[Any, int]:
    """Return the value of the parcel that begins at ``at``, and where the parcel ends.

    The parcel's descriptor is removed from the front of ``fds`` and closed. ``keep``: the memory
    may be used for a result.
    """
    flags, count, length = HEAD.unpack_from(body, at)
    at += HEAD.size
    spans = [SPAN.unpack_from(body, at + i * SPAN.size) for i in range(count)]
    at += count * SPAN.size
    data = memoryview(body)[at : at + length]
    if not flags & _HAS_FD:
        return loads(data), at + length
    memory = memoryview(shared_buffers.load(fds.pop(0), keep=keep))
    buffers = [memory[start : start + size] for start, size in spans]
    if flags & _PICKLE_IN_FD:
        data = buffers.pop(0)
    return known_classes.load(data, buffers=buffers), at + length


def _close(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())
