"""Shared memory without a name: written by one process, mapped or copied out by another.

    write(buffers) -> descriptor --- over a socket ---> load(descriptor) -> memory

The writer copies each buffer once, with ``pwrite`` (far cheaper than a mapping: no page fault per
page), and closes the descriptor. The memory is sealed against resizing, so that access to a mapping
can never fault. Memory that is also sealed against writing may be read more than once (the same
function in many calls, a call that may be repeated): readers get copy-on-write pages. Other memory
is mapped shared, and the reader owns it: arrays are writable in place.

A worker may return memory that it received (`reuse`), because no other process reads it again.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    import weakref

    #: Offset and length of each buffer.
    Spans = list[tuple[int, int]]

#: Memory up to this size is copied out, not mapped: that is cheaper, and needs no descriptor later.
COPY_BELOW = 512 * 1024
#: Most live mappings; beyond that, memory is copied out. Before Python 3.13, each mapping holds a
#: descriptor, and a program may keep any number of results.
MAX_MAPPINGS = 256
#: Alignment for vector instructions and NumPy.
ALIGNMENT = 64

# fcntl(2); the module `fcntl` has names for these only if the C library has.
_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034
_SEAL_SIZE = 0x2 | 0x4
_SEAL_WRITE = 0x8

_mappings: weakref.WeakSet[mmap.mmap] | None = None
#: In a worker: the memory in which the call's arguments came.
received: Received | None = None


# Writing.


def write(buffers: list[memoryview], *, sealed: bool) -> tuple[int, Spans]:
    """Write buffers to new memory; return its descriptor, and the place of each buffer.

    Raises:
        OSError: descriptors or memory are short.
    """
    fd = _new()
    try:
        spans = _write_all(fd, buffers)
        _seal(fd, _SEAL_SIZE | _SEAL_WRITE if sealed else _SEAL_SIZE)
    except BaseException:
        os.close(fd)
        raise
    return fd, spans


def reuse(views: list[memoryview]) -> tuple[int, Spans] | None:
    """Put buffers into the memory that was received; return None if that is impossible.

    Buffers in that memory stay in place. If all buffers are elsewhere, they overwrite the memory:
    its pages exist, and creating new pages is most of the work of a copy.
    """
    if received is None:
        return None
    size = received.size
    starts = [received.offset(view) for view in views]
    spans = [(at, view.nbytes) for at, view in zip(starts, views, strict=True) if at is not None]
    used = sum(ALIGNMENT * -(-view.nbytes // ALIGNMENT) for view in views)
    if len(spans) < len(views) or 2 * used < size:
        return None
    inside = _lie_apart_inside(spans, size)
    outside = used <= size and all(at >= size or at + length <= 0 for at, length in spans)
    fd = received.descriptor() if inside or outside else None
    if fd is None:
        return None
    return fd, _write_all(fd, views) if outside else spans


def _lie_apart_inside(spans: list[tuple[int, int]], size: int) -> bool:
    """Return whether all buffers are within the memory, and none overlap.

    Arrays that overlap at the reader would change together.
    """
    end = 0
    for start, length in sorted(spans):
        if start < end:
            return False
        end = start + length
    return end <= size


def _write_all(fd: int, buffers: list[memoryview]) -> list[tuple[int, int]]:
    """Write buffers one after the other, aligned; return the place of each."""
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


def _new() -> int:
    """Create an empty file in memory, without a name."""
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
        # A plain file cannot be sealed, but only writer and reader have access.
        pass


# Reading.


def load(fd: int, *, keep: bool) -> mmap.mmap | bytearray:
    """Return the memory behind a descriptor, which is closed; ``keep``: for `reuse`."""
    global received
    try:
        size = os.fstat(fd).st_size
        if size <= COPY_BELOW or not _may_map():
            return _read(fd, size)
        memory = _map(fd, size)
        if keep and not isinstance(memory, bytearray) and not _is_sealed(fd):
            received = Received(memory, fd)
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
        # Descriptors (mmap duplicates the given one) or mappings are short.
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


def _is_sealed(fd: int) -> bool:
    import fcntl

    try:
        return bool(fcntl.fcntl(fd, _F_GET_SEALS) & _SEAL_WRITE)
    except OSError:
        # A plain file may be read again, so treat it as sealed.
        return True


class Received:
    """The memory in which arguments came; kept for the life of the process."""

    __slots__ = ("_address", "_fd", "_identity", "size")

    def __init__(self, memory: mmap.mmap, fd: int) -> None:
        import ctypes

        self._address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self.size = len(memory)
        self._fd = os.dup(fd)
        self._identity = _identity(fd)

    def offset(self, view: memoryview) -> int | None:
        """Return the offset of a buffer relative to the memory; None if the buffer is read-only."""
        import ctypes

        try:
            return ctypes.addressof(ctypes.c_char.from_buffer(view)) - self._address
        except TypeError:
            return None

    def descriptor(self) -> int | None:
        """Return a descriptor to send; None if user code has closed ours or reused its number."""
        try:
            fd = os.dup(self._fd)
        except OSError:
            return None
        if _identity(fd) == self._identity:
            return fd
        os.close(fd)
        return None

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
