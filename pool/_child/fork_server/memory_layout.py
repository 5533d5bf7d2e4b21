"""Arranges a zygote's memory before it forks: places that calls write to lie side by side.

A worker copies each page when it first writes to it, which is most of the cost of a small call. Two
kinds of writes are the same in every call; without this module, each hits a page of its own:

* **Code objects.** References to them are counted. From CPython 3.11 on, their instructions have
  counters between them, which running the code writes to (PEP 659). Code objects lie wherever the
  import of their modules placed them.
* **New objects.** Small objects come from pools, one for each size (`Objects/obmalloc.c`): a new
  object is wherever an object of that size was freed last, anywhere in memory.

So `gather` gives the functions that a call runs new code objects, one behind the other, and
`fill_holes` fills free blocks of pools that are in use, so that new objects come from the
beginnings of new pools. This saves a third of the pages that a worker would copy beyond those that
a bare fork copies.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from types import FunctionType

from .. import forking, processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import CodeType
    from typing import Any, Final


_POOL: Final = 16 * 1024
#: Bytes at the start of a pool: its header, and a few of the smallest blocks.
_START: Final = 256
#: Objects of at most so many bytes come from pools, each for one size. All copied code objects get
#: the largest size, so that they share pools.
_POOLED: Final = 512
#: The bytecode of ``pass``, after RESUME. (`opcode` would map a library.)
_NOP: Final = compile("pass\npass", "", "exec").co_code[2:4]
#: Whether code objects hold their instructions; before 3.11, these lay elsewhere and were not
#: written to.
_HOLDS_INSTRUCTIONS: Final = sys.version_info >= (3, 11)
#: Fillers are bytes objects, and ints of two digits, which are among the smallest objects.
_BYTES_HEADER: Final = sys.getsizeof(b"")
_A_LOT: Final = 1 << 40
_INT: Final = sys.getsizeof(_A_LOT)
#: Most bytes to fill per size: further holes are not worth filling.
_ENOUGH: Final = 256 * 1024
#: Larger holes of the C heap need no filling: blocks taken from them lie together.
_LARGE: Final = 64 * 1024
#: Most bytes to fill in the C heap: another allocator (of a preloaded library) may never place
#: blocks together.
_ENOUGH_LARGE: Final = 4 * 1024 * 1024
#: Bytes of the C heap that a small call needs.
_ROOM: Final = 112 * 1024
#: Time limit for a run in a fork, which takes some milliseconds.
_PATIENCE_S: Final = 5.0

#: Objects held forever: fillers, and replaced code objects, whose places must not become free.
_kept: list[object] = []


def executed(run: Callable[[], None]) -> list[int]:
    """Return addresses of the code objects that a function executes, in the order of their first
    call.

    The function runs in a fork, because a profiler leaves traces in the code that it watches.
    Without resources for one more process, the result is empty.
    """
    reader, writer = os.pipe()
    try:
        pid = forking.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        return []
    if pid == 0:
        try:
            seen: dict[int, None] = {}
            sys.setprofile(lambda frame, *_: seen.setdefault(id(frame.f_code)))
            run()
            sys.setprofile(None)
            os.write(writer, " ".join(map(str, seen)).encode())
        except BaseException:
            # Without addresses, no function is moved, which only makes calls slower.
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(0)
    os.close(writer)
    _see_it_end(pid)
    os.set_blocking(reader, False)  # a process that the fork left may hold the other end open
    try:
        addresses = os.read(reader, 1 << 16)
    except BlockingIOError:
        addresses = b""
    os.close(reader)
    return [int(address) for address in addresses.split()]


def _see_it_end(pid: int) -> None:
    """Wait for the fork's exit; kill a fork that hangs, as a preloaded module may cause that."""
    pidfd = os.pidfd_open(pid)
    if not select.select([pidfd], [], [], _PATIENCE_S)[0]:
        for one in (*processes.descendants(pid), pid):
            processes.send(one, signal.SIGKILL)
    os.close(pidfd)
    os.waitpid(pid, 0)


def gather(addresses: Iterable[int], objects: list[Any]) -> list[CodeType]:
    """Give the functions with these code objects copies of them, and return the copies, which lie
    together.
    """
    users: dict[int, list[FunctionType]] = {}
    for one in objects:
        if type(one) is FunctionType:
            users.setdefault(id(one.__code__), []).append(one)
    copies = []
    for address in addresses:
        for function in users.get(address, ()):
            _kept.append(function.__code__)
            function.__code__ = _copy(function.__code__)
            copies.append(function.__code__)
    return copies


def _copy(code: CodeType) -> CodeType:
    room = _POOLED - sys.getsizeof(code) if _HOLDS_INSTRUCTIONS else 0
    # The padding is behind the last instruction, where it never runs.
    return code.replace(co_code=code.co_code + max(0, room // len(_NOP)) * _NOP)


def fill_holes() -> None:
    """Allocate free blocks of every size, until new blocks come from the start of a pool."""
    held = bytes(_ROOM)
    _kept.append(slice(None))  # takes the slice object that the interpreter caches
    for size in range(_INT, _POOLED + 1, 16):
        _fill_pools(size)
    _fill_heap()
    # Free some room in the heap, or each worker would ask the kernel for more.
    del held


def _fill_pools(size: int) -> None:
    before = _START
    for number in range(_ENOUGH // size):
        filler = _A_LOT + number if size == _INT else bytes(size - _BYTES_HEADER)
        _kept.append(filler)
        # Require two adjacent fillers at the start of a pool, as the first block of a pool in use
        # may be free, too. Almost adjacent: the addresses compared here are objects themselves.
        if before % _POOL < _START and 0 < id(filler) - before <= 2 * size:
            return
        before = id(filler)


def _fill_heap() -> None:
    """Fill holes of the C heap: malloc, for larger blocks, takes the smallest hole that fits."""
    size, left = _LARGE, _ENOUGH_LARGE
    while size > _POOLED and left > 0:
        one, other = bytes(size), bytes(size)
        if 0 < id(other) - id(one) < size + 2 * _BYTES_HEADER:
            # The two blocks are adjacent, and so will later blocks of this size be.
            size -= max(16, size // 16)
        else:
            _kept.extend((one, other))
            left -= 2 * size


def arrange(run: Callable[[], None], also: Iterable[Any], objects: list[Any]) -> list[CodeType]:
    """Lay the code objects that ``run`` executes side by side; return the new code objects.

    Run the function again afterwards: the copies must warm up like the originals. ``also``: further
    functions, which ``run`` cannot execute under a profiler. Only functions among ``objects`` move.
    """
    addresses = [*(id(function.__code__) for function in also), *executed(run)]
    _fill_pools(_POOLED)
    _fill_heap()
    return gather(addresses, objects)
