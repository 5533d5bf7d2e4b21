"""Does what Python does when a process exits, after the RESULT of a call was sent.

    RESULT (announces the exit) --> flush files --> EXIT flushed --> threads --> exit hooks
        --> finalizers, files closed --> EXIT done

The order is the interpreter's (`Py_FinalizeEx`): threads that are not daemons, `atexit` with the
last hook first, then values of the user's modules. Two things differ. The supervisor limits every
wait (`exits`): it answers before the exit is over, and finally stops the process. And open files
are closed outermost first; the collector, which may break a cycle anywhere, could close a file
before an object that still writes to it.

Exceptions in hooks and finalizers are printed, as Python prints them; the call's outcome does not
change.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
import threading
from time import monotonic

from .. import wire
from ..renewal import prepared
from . import exit_needs
from .outcome import flush_output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    #: Reports to the supervisor: the stage, what runs now, and what was abandoned.
    Tell = Callable[[int, str, str], None]

#: How deep files below a file are searched (text file, zip member, zip, its file), and how many
#: objects.
_DEPTH, _BREADTH = 5, 200
#: Most threads that a note names.
_NAMES = 5
#: Stages other than threads, in words.
_HOOKS, _FINALIZERS = "exit hooks", "finalizers"
#: The end of hooks that take longer than this is reported.
_LONG_S = 0.05
_C_BUFFERS = (io.BufferedWriter, io.BufferedRandom, io.BufferedRWPair)


def tell_over(send: Callable[[int, bytes, bytes, list[int]], None]) -> Tell:
    """Return a function that reports stages of the exit as EXIT frames."""

    def tell(stage: int, runs: str, ended: str) -> None:
        flush_output()
        send(wire.EXIT, wire.pack_exit(stage, runs, ended), b"", [])

    return tell


def run(known: int, tell: Tell, bound_s: float | None = None) -> None:
    """Run the exit; the process had ``known`` modules before the call."""
    pid = os.getpid()
    began = monotonic()
    bound_s = prepared.exit_s if bound_s is None else bound_s
    files = [one for one in exit_needs.finalizable() if isinstance(one, io.IOBase)]
    may_wait = exit_needs.may_wait()
    running = _running() if may_wait else []
    for one in _outermost_first(files):
        if may_wait or _is_of_c(one):
            _flush(one)
    del files
    ended = ""
    tell(wire.FLUSHED, _counted(running) or (_HOOKS if may_wait else _FINALIZERS), "")
    if may_wait:
        if running:
            ended = _wait_for_threads(began, bound_s, tell)
            tell(wire.RUNS, _HOOKS, ended)
        else:
            _join_threads()
        _stop_listeners()
        hooks_began = monotonic()
        _attempt(atexit._run_exitfuncs)
        if monotonic() - hooks_began > _LONG_S:
            tell(wire.RUNS, _FINALIZERS, ended)
    atexit._clear()
    _finalize(known)
    if os.getpid() != pid:
        # A hook forked, and this is the child: only the original process may answer.
        os._exit(0)
    tell(wire.DONE, "", ended)


def _attempt(function: Callable[..., Any], *args: Any) -> None:
    try:
        function(*args)
    except BaseException:
        sys.excepthook(*sys.exc_info())


# -- Threads ------------------------------------------------------------------------------


def _running() -> list[threading.Thread]:
    """Return the threads that Python would wait for."""
    main = threading.main_thread()
    return [one for one in threading.enumerate() if not one.daemon and one is not main]


def _counted(threads: list[threading.Thread]) -> str:
    if not threads:
        return ""
    return f"{len(threads)} thread{'s'[: len(threads) > 1]}"


def _wait_for_threads(began: float, bound_s: float, tell: Tell) -> str:
    """Wait for threads to end, as Python does; return in words the threads that did not, if any.

    Another thread joins them, because hooks of `threading` (such as those of `concurrent.futures`)
    join their threads without a limit.
    """
    over = threading.Lock()
    over.acquire()

    def join() -> None:
        _attempt(_join_threads)
        over.release()

    import _thread

    _thread.start_new_thread(join, ())
    if over.acquire(timeout=max(0.0, began + prepared.exit_answer_s - monotonic())):
        return ""
    tell(wire.ANSWER, _counted(_running()) or "threads", "")
    if over.acquire(timeout=max(0.0, began + bound_s - monotonic())):
        return ""
    left = _running()
    names = ", ".join(one.name for one in left[:_NAMES])
    return f"{_counted(left)} ({names})" if left else "threads"


def _join_threads() -> None:
    """Join threads like `threading._shutdown`, which takes its caller for the main thread."""
    hooks: list[Callable[[], object]] = threading._threading_atexits  # type: ignore[attr-defined]
    while hooks:
        _attempt(hooks.pop())
    while running := _running():
        for one in running:
            one.join()


def _stop_listeners() -> None:
    """Let queue listeners of `logging` handle their queues, as their threads are daemons."""
    handlers = sys.modules.get("logging.handlers")
    kind = getattr(handlers, "QueueListener", None)
    if kind is None:
        return
    for one in gc.get_objects():
        if isinstance(one, kind) and getattr(one, "_thread", None) is not None:
            _attempt(one.stop)
            # A hook may stop the listener again, which raises in older versions.
            one._thread = _Stopped()


class _Stopped:
    """Stands in for the thread of a listener that was stopped."""

    def __bool__(self) -> bool:
        return False

    def join(self) -> None:
        """Do nothing: the thread has ended."""


# -- Files and finalizers -----------------------------------------------------------------


def _finalize(known: int) -> None:
    """Delete the values of the call's modules, then close the files that are still open."""
    found = exit_needs.finalizable()
    files = [one for one in found if isinstance(one, io.IOBase)]
    others = len(found) > len(files)
    del found
    if others:
        # As in the interpreter, modules are deleted while finalizers still find all their names.
        # Files are kept open meanwhile, so that finalizers can write to them.
        for module in exit_needs.users_modules(known):
            sys.modules.pop(module.__name__, None)
        module = None  # type: ignore[assignment]
        gc.collect()
    ordered = _outermost_first(files)[::-1]
    del files
    while ordered:
        one = ordered.pop()
        _close(one)
    one = None
    _clear(exit_needs.users_modules(known))
    if others:
        gc.collect()


def _clear(modules: list[ModuleType]) -> None:
    for module in modules:
        for name in exit_needs.names_to_clear(module):
            _attempt(module.__dict__.pop, name, None)


def _is_of_c(file: Any) -> bool:
    """Return whether flushing only writes what was written."""
    kind = type(file)
    return kind in _C_BUFFERS or (kind is io.TextIOWrapper and type(file.buffer) in _C_BUFFERS)


def _flush(file: Any) -> None:
    try:
        file.flush()
    except BaseException:
        pass  # closing the file will fail, too, and print the error


def _close(file: Any) -> None:
    try:
        if file.closed or _is_standard(file):
            file.flush()
        else:
            file.close()
    except ValueError:
        pass  # closed meanwhile, by a file around it
    except BaseException:
        print(f"Exception ignored in: {file!r}", file=sys.stderr)
        sys.excepthook(*sys.exc_info())


def _is_standard(file: Any) -> bool:
    """Return whether a file writes to stdout or stderr, which other code uses, too."""
    if file in (sys.stdout, sys.stderr):
        return True
    try:
        return bool(file.fileno() in (1, 2))
    except (OSError, AttributeError, io.UnsupportedOperation):
        return False


def _outermost_first(files: list[Any]) -> list[Any]:
    """Return the files in an order in which each comes before the files that it writes to."""
    ids = {id(one) for one in files}
    inner = {id(one): _below(one, ids) for one in files}
    ordered: list[Any] = []
    left = files
    while left:
        covered = {below for one in left for below in inner[id(one)]}
        heads = [one for one in left if id(one) not in covered] or left
        ordered += heads
        taken = {id(one) for one in heads}
        left = [one for one in left if id(one) not in taken]
    return ordered


def _below(file: Any, ids: set[int]) -> set[int]:
    """Return the files to which a file refers, directly or indirectly."""
    seen = {id(file)}
    layer = [file]
    for _ in range(_DEPTH):
        parts = gc.get_referents(*layer)
        layer = [one for one in parts if id(one) not in seen and not isinstance(one, _NOT_BELOW)]
        layer = layer[:_BREADTH]
        seen |= {id(one) for one in layer}
    return (seen & ids) - {id(file)}


_NOT_BELOW = (type, type(sys), type(run), type(run.__code__), str, bytes, int)
