"""Pickles whose large buffers travel in shared memory instead of through a socket.

A value becomes a *parcel*: a few bytes for the message, and at most one descriptor.

    HEAD (flags, number of spans, length of pickle) | SPAN (offset, length)* | pickle
                                  |
                                  v  each span is one buffer of pickle protocol 5
    descriptor (memfd): ....buffer....pad....buffer....pad..

The writer copies each large buffer once, with ``pwrite`` (which beats a mapping by far:
no page fault per page), and lets go. The reader maps the descriptor and unpickles views
of the mapping: no copy, and the memory is returned when the last array over it is gone.
A pickle that is itself large (a huge ``bytes``, many objects) goes into the descriptor
too, as the first span, so that messages stay small.

A *call* is a kind and two parcels, function and arguments; they may have been packed
apart, so that `Pool.map` pickles its function once. A *result* is one parcel.

Every descriptor made here is sealed against resizing, so that a mapping of it can never
fault. One that is also sealed against writing may be read more than once (the same
function in many calls, a call that may be repeated): its reader gets copy-on-write
pages. Any other is mapped shared, and the reader owns it: arrays are writable in place.

A result of about the size of its call's arguments goes back in the memory they came in:
uncopied where it lies there already (the argument itself, changed in place or most of it).
"""

from __future__ import annotations

import os
import pickle
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    import weakref
    from collections.abc import Callable
    from typing import Any

    Parcel = tuple[bytes, list[int]]
    Dumps = Callable[[Any, "Buffers | None"], bytes]

#: Buffers from here on travel out of band; below, a descriptor costs more than it saves.
OUT_OF_BAND = 64 * 1024
#: A pickle longer than this goes into the descriptor as well.
LARGE_PICKLE = 1024 * 1024
#: Memory this small is copied out rather than mapped: cheaper, and holds no descriptor.
COPY_BELOW = 512 * 1024
#: Live mappings beyond which memory is copied out. Before Python 3.13 each holds a
#: descriptor, and a program may keep any number of results.
MAX_MAPPINGS = 256
#: What vector instructions and NumPy like best.
ALIGNMENT = 64

#: flags, number of spans, length of the pickle.
HEAD = struct.Struct("<BIQ")
#: offset and length in the descriptor.
SPAN = struct.Struct("<QQ")
_HAS_FD = 1
_PICKLE_IN_FD = 2

#: Kinds of call.
ONE = b"1"
EACH = b"*"

# fcntl(2); the module has names for them from Python 3.8 on, but only where libc does.
_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034
_SEAL_SIZE = 0x2 | 0x4
_SEAL_WRITE = 0x8

#: Types for which cloudpickle has nothing to add.
_PLAIN = frozenset((type(None), bool, int, float, str, bytes))

_mappings: weakref.WeakSet[mmap.mmap] | None = None
#: In a worker: what its call's arguments came in.
_received: _Received | None = None


# In the worker.


def load_call(body: bytes, fds: list[int]) -> tuple[Any, Any, Any]:
    """What to run: a function, its positional and its keyword arguments."""
    try:
        function, at = unpack(body, len(ONE), fds)
        arguments, _ = unpack(body, at, fds, keep=True)
    finally:
        _close(fds)
    if body[: len(EACH)] == EACH:
        return _each, (function, arguments), {}
    args, kwargs = arguments
    return function, args, kwargs


def dump_result(value: Any, *, last: bool = False) -> Parcel:
    """The value as a parcel. ``last``: the process ends now, so that nothing changes it later.

    Raises:
        Unserializable: it cannot be pickled.
    """
    try:
        return pack(value, in_place=last)
    except Exception as error:
        from .exceptions import Unserializable

        message = (
            f"the result, of type {type(value).__qualname__}, cannot be pickled: {_say(error)}"
        )
        raise Unserializable(message) from error


def _each(function: Any, calls: list[tuple[Any, ...]]) -> list[Any]:
    """A chunk of a map: one process, many calls."""
    from . import invoke

    return [invoke.run(function, args, {}, None) for args in calls]


def _say(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # a __str__ of the user's
        return type(error).__name__


# In the program.


def pack_call(function: Parcel, arguments: Parcel, kind: bytes = ONE) -> Parcel:
    """The message of a call; takes over the descriptors of both parcels."""
    return kind + function[0] + arguments[0], function[1] + arguments[1]


def duplicate(parcel: Parcel) -> Parcel:
    """The same parcel with descriptors of its own. It must have been packed ``sealed``."""
    return parcel[0], [os.dup(fd) for fd in parcel[1]]


def load_result(body: bytes, fds: list[int]) -> Any:
    """The value of a result; closes the descriptors."""
    try:
        return unpack(body, 0, fds)[0]
    finally:
        _close(fds)


# Both ways.


class Buffers:
    """Collects the buffers of one pickle that are worth a descriptor."""

    __slots__ = ("views",)

    def __init__(self) -> None:
        self.views: list[memoryview] = []

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        """Called by the pickler; True leaves the buffer in the pickle."""
        try:
            view = buffer.raw()
        except BufferError:
            return True  # not contiguous
        if view.nbytes < OUT_OF_BAND:
            return True
        self.views.append(view)
        return False


def dumps(value: Any, buffers: Buffers | None) -> bytes:
    """Pickle, in a worker."""
    from . import pickling

    def by_reference(file: Any, protocol: int) -> Any:
        return pickling.ByReference(file, protocol, buffer_callback=buffers)

    def by_value() -> Any:
        import cloudpickle

        if buffers is not None:
            buffers.views.clear()  # of the first attempt
        return lambda file, protocol: cloudpickle.Pickler(file, protocol, buffer_callback=buffers)

    return pickling.dump_with(value, by_reference, by_value, None)


def pack(
    value: Any,
    dumps: Dumps = dumps,
    *,
    sealed: bool = False,
    out_of_band: bool = True,
    in_place: bool = False,
) -> Parcel:
    """Make a parcel of a value; the caller owns the descriptor in it, if there is one."""
    if type(value) in _PLAIN:
        data = pickle.dumps(value, 5)
        views = []
    else:
        buffers = Buffers() if out_of_band else None
        data = dumps(value, buffers)
        views = buffers.views if buffers is not None else []
    if not out_of_band or (not views and len(data) <= LARGE_PICKLE):
        return HEAD.pack(0, 0, len(data)) + data, []
    try:
        if in_place and (parcel := _pack_in_place(data, views)):
            return parcel
        return _pack_out_of_band(data, views, sealed)
    except OSError:
        # No descriptor or no shared memory to be had: slower, but it arrives.
        del data, views
        return pack(value, dumps, out_of_band=False)


def _pack_out_of_band(data: bytes, buffers: list[memoryview], sealed: bool) -> Parcel:
    flags = _HAS_FD
    if len(data) > LARGE_PICKLE:
        flags |= _PICKLE_IN_FD
        buffers = [memoryview(data), *buffers]
        data = b""
    fd = _memory()
    try:
        spans = [SPAN.pack(*span) for span in _write_all(fd, buffers)]
        _seal(fd, _SEAL_SIZE | _SEAL_WRITE if sealed else _SEAL_SIZE)
    except BaseException:
        os.close(fd)
        raise
    return HEAD.pack(flags, len(spans), len(data)) + b"".join(spans) + data, [fd]


def _pack_in_place(data: bytes, views: list[memoryview]) -> Parcel | None:
    """A parcel in the memory of the arguments, which nobody else will read again.

    Buffers that lie in it stay where they are. Buffers that all lie elsewhere are written
    over it: its pages exist, and making new ones is most of the work of a copy.
    """
    if _received is None or len(data) > LARGE_PICKLE:
        return None
    size = _received.size
    starts = [_received.offset(view) for view in views]
    spans = [(at, view.nbytes) for at, view in zip(starts, views, strict=True) if at is not None]
    used = sum(ALIGNMENT * -(-view.nbytes // ALIGNMENT) for view in views)
    if len(spans) < len(views) or 2 * used < size:
        return None
    inside = _lie_apart_inside(spans, size)
    outside = used <= size and all(at >= size or at + length <= 0 for at, length in spans)
    fd = _received.descriptor() if inside or outside else None
    if fd is None:
        return None
    if outside:
        spans = _write_all(fd, views)
    head = HEAD.pack(_HAS_FD, len(spans), len(data))
    return head + b"".join(SPAN.pack(*span) for span in spans) + data, [fd]


def _lie_apart_inside(spans: list[tuple[int, int]], size: int) -> bool:
    """Whether all are within the memory, no two over the same bytes.

    Two that are would change together at the reader.
    """
    end = 0
    for start, length in sorted(spans):
        if start < end:
            return False
        end = start + length
    return end <= size


class _Received:
    """Memory that arguments came in, for as long as the process lives."""

    __slots__ = ("_address", "_fd", "_identity", "size")

    def __init__(self, memory: mmap.mmap, fd: int) -> None:
        import ctypes

        self._address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self.size = len(memory)
        self._fd = os.dup(fd)
        self._identity = _identity(fd)

    def offset(self, view: memoryview) -> int | None:
        """Where a buffer begins, counted from here; None for what is read-only."""
        import ctypes

        try:
            return ctypes.addressof(ctypes.c_char.from_buffer(view)) - self._address
        except TypeError:
            return None

    def descriptor(self) -> int | None:
        """One to give away; None when user code closed ours, and perhaps reused its number."""
        try:
            fd = os.dup(self._fd)
        except OSError:
            return None
        if _identity(fd) == self._identity:
            return fd
        os.close(fd)
        return None

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _write_all(fd: int, buffers: list[memoryview]) -> list[tuple[int, int]]:
    """Write buffers one after the other, aligned; where each one is."""
    spans = []
    at = 0
    for buffer in buffers:
        length = buffer.nbytes
        spans.append((at, length))
        done = 0
        while done < length:
            done += os.pwrite(fd, buffer[done:], at + done)
        at += -(-length // ALIGNMENT) * ALIGNMENT
    return spans


def unpack(body: bytes, at: int, fds: list[int], *, keep: bool = False) -> tuple[Any, int]:
    """The value of the parcel that begins at ``at``, and where it ends.

    Takes the parcel's descriptor off the front of ``fds`` and closes it, unless it is to
    be kept for a result.
    """
    flags, count, length = HEAD.unpack_from(body, at)
    at += HEAD.size
    spans = [SPAN.unpack_from(body, at + i * SPAN.size) for i in range(count)]
    at += count * SPAN.size
    data: bytes | memoryview = memoryview(body)[at : at + length]
    if not flags & _HAS_FD:
        return pickle.loads(data), at + length
    memory = memoryview(_open(fds.pop(0), keep=keep))
    buffers = [memory[start : start + size] for start, size in spans]
    if flags & _PICKLE_IN_FD:
        data = buffers.pop(0)
    return pickle.loads(data, buffers=buffers), at + length


def _open(fd: int, *, keep: bool) -> mmap.mmap | bytearray:
    """The memory behind a descriptor, which is closed."""
    global _received
    try:
        size = os.fstat(fd).st_size
        if size <= COPY_BELOW or not _may_map():
            return _read(fd, size)
        memory = _map(fd, size)
        if keep and not isinstance(memory, bytearray) and not _is_sealed(fd):
            _received = _Received(memory, fd)
        return memory
    finally:
        os.close(fd)


def _may_map() -> bool:
    return sys.version_info >= (3, 13) or _mappings is None or len(_mappings) < MAX_MAPPINGS


def _map(fd: int, size: int) -> mmap.mmap | bytearray:
    import mmap
    import weakref

    global _mappings
    flags = mmap.MAP_PRIVATE if _is_sealed(fd) else mmap.MAP_SHARED
    try:
        if sys.version_info >= (3, 13):
            return mmap.mmap(fd, size, flags, trackfd=False)
        mapping = mmap.mmap(fd, size, flags)
    except OSError:
        # Out of descriptors (it duplicates ours) or of mappings.
        return _read(fd, size)
    if _mappings is None:
        _mappings = weakref.WeakSet()
    _mappings.add(mapping)
    return mapping


def _read(fd: int, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    done = 0
    while done < size:
        count = os.preadv(fd, [view[done:]], done)
        if count == 0:
            raise EOFError(f"shared memory of {size} bytes ends after {done}")
        done += count
    return data


def _memory() -> int:
    """An empty file in memory that has no name."""
    try:
        return os.memfd_create("flashpool", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except (AttributeError, OSError):
        import tempfile

        folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.dup(file.fileno())


def _seal(fd: int, seals: int) -> None:
    import fcntl

    try:
        fcntl.fcntl(fd, _F_ADD_SEALS, seals)
    except OSError:
        # A plain file cannot be sealed; nobody but the two of us can reach it.
        pass


def _is_sealed(fd: int) -> bool:
    import fcntl

    try:
        return bool(fcntl.fcntl(fd, _F_GET_SEALS) & _SEAL_WRITE)
    except OSError:
        # A plain file: whether it is read again is not known, so leave it as it is.
        return True


def _close(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())
