"""What `make coverage` puts in the place of boot.py: it records arcs, and then boots.

    each frame in a module of the child --sys.settrace--> one byte of a file that all share

Coverage.py itself is too large for a zygote: workers would find a hundred modules that no
worker has, and end before they had written what they know. Here an arc (from line to line, as
coverage.py has it) is a byte of a file that every process has mapped. It takes no system call,
no descriptor and no lock to set it, forks inherit it, and a worker that is killed has told
all it did. `measure_coverage` fills in the two constants, and reads the file afterwards.
"""

from __future__ import annotations

import ctypes
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, FrameType
    from typing import Any

#: The shared file; for each source, the offset of its bytes and its number of lines.
ARCS = ""
SOURCES: dict[str, tuple[int, int]] = {}

#: Of sys/mman.h: readable and writable; shared.
_READ_WRITE, _SHARED = 3, 1
#: CO_GENERATOR, CO_COROUTINE, CO_ASYNC_GENERATOR: code that may be resumed many times.
_RESUMABLE = 0x20 | 0x80 | 0x200
_HAS_RESUME = sys.version_info >= (3, 11)
#: A function that did nothing new for so many lines is looked at in one call of so many:
#: what goes through all objects of a process would take minutes.
_BUSY, _ONE_IN = 300, 16


def shared_bytes(path: str) -> Any:
    """The file's bytes, for as long as this process and its forks live."""
    mmap = ctypes.CDLL(None).mmap
    mmap.restype = ctypes.c_void_p
    mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    size = os.path.getsize(path)
    fd = os.open(path, os.O_RDWR)
    address = mmap(None, size, _READ_WRITE, _SHARED, fd, 0)
    os.close(fd)
    return (ctypes.c_ubyte * size).from_address(address)


def is_resumed(code: CodeType, frame: FrameType) -> bool:
    """Return whether this call event resumes a generator or coroutine."""
    if not code.co_flags & _RESUMABLE:
        return False
    if _HAS_RESUME:
        return code.co_code[frame.f_lasti + 1] != 0  # the argument of RESUME
    return frame.f_lasti >= 0


def record(cells: Any) -> None:  # noqa: C901 - each function more would cost more than it records
    """Set the byte of each arc from now on, in this thread and in its forks."""
    sources = SOURCES
    #: Of each function: arcs in a row, in this process, that were known; then, calls passed over.
    known: dict[CodeType, int] = {}

    def on_call(frame: FrameType, _event: str, _arg: object) -> Any:  # noqa: C901 - likewise
        try:
            code = frame.f_code
        except BaseException:
            return None  # an audit hook of a call may raise here, inside the traced code
        source = sources.get(code.co_filename)
        if source is None:
            return None
        in_a_row = known.get(code, 0)
        busy = in_a_row > _BUSY
        if busy:
            known[code] = in_a_row + 1
            if in_a_row % _ONE_IN:
                return None
            in_a_row = 0
        begin, lines = source
        # An arc's ends are lines, or a function's outside: its first line, in a second half
        # of the numbers.
        side = 2 * (lines + 1)
        outside = lines + 1 + code.co_firstlineno
        before = frame.f_lineno if is_resumed(code, frame) else outside

        def on_event(frame: FrameType, event: str, _arg: object) -> Any:
            nonlocal before, in_a_row
            if event == "line":
                after = frame.f_lineno
            elif event == "return":
                after = outside
            else:
                return on_event
            at = begin + before * side + after
            before = after
            if not cells[at]:
                cells[at] = 1
                known[code] = in_a_row = 0
                return on_event
            in_a_row += 1
            if not busy and (after == outside or in_a_row > _BUSY):
                known[code] = in_a_row
            if in_a_row > _BUSY:
                frame.f_trace = None
            return frame.f_trace

        return on_event

    # A worker must count anew the functions that its zygote has run a hundred times.
    os.register_at_fork(after_in_child=known.clear)
    sys.settrace(on_call)


def product() -> CodeType:
    """Run the product's boot.py, which this file replaces."""
    with open(f"{__file__}.product", "rb") as file:
        return compile(file.read(), __file__, "exec")


if __name__ == "__main__":
    code = product()
    record(shared_bytes(ARCS))
    # coverage.py itself does not measure this process, nor its calls.
    os.environ.pop("COVERAGE_PROCESS_START", None)
    exec(code, {"__name__": "__main__", "__file__": __file__})
