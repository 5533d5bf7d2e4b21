"""Does what Python does when a process exits, for a call whose RESULT is under way.

    RESULT (says that it exits) --> flush files --> EXIT flushed --> threads --> exit hooks
        --> finalizers, files closed --> EXIT done

The order is the interpreter's (`Py_FinalizeEx`): threads that are not daemons, `atexit` with the
last hook first, then values of the user's modules. Two things differ. Every wait is limited, by the
supervisor (`exits`): it answers before everything is over, and finally stops the process. And open
files are closed outermost first, whereas a collector that meets a cycle may close a file before the
object that still writes to it.

Exceptions in hooks and finalizers are printed, as Python prints them; the call's end does not
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

    #: Reports a stage to the supervisor: the stage, what runs in it, and what was left behind.
    Tell = Callable[[int, str, str], None]

#: How deep files below a file are searched (a text, its zip's member, the zip, its file), and how
#: many.
_DEPTH, _BREADTH = 5, 200
#: Threads named in a note.
_NAMES = 5
#: Names of what may run beside threads.
_HOOKS, _FINALIZERS = "exit hooks", "finalizers"
#: Hooks that take longer are reported when they are over.
_LONG_S = 0.05
_C_BUFFERS = (io.BufferedWriter, io.BufferedRandom, io.BufferedRWPair)


def tell_over(send: Callable[[int, bytes, bytes, list[int]], None]) -> Tell:
    """Tells it in frames."""

    def tell(stage: int, runs: str, ended: str) -> None:
        flush_output()
        send(wire.EXIT, wire.pack_exit(stage, runs, ended), b"", [])

    return tell


def run(known: int, tell: Tell, bound_s: float | None = None) -> None:
    """Handle everything that is left; the process had ``known`` modules before the call."""
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
        # A hook forked, and its child came back here: only one may answer.
        os._exit(0)
    tell(wire.DONE, "", ended)


def _attempt(function: Callable[..., Any], *args: Any) -> None:
    try:
        function(*args)
    except BaseException:
        sys.excepthook(*sys.exc_info())


# -- Threads ------------------------------------------------------------------------------


def _running() -> list[threading.Thread]:
    """Threads that Python waits for."""
    main = threading.main_thread()
    return [one for one in threading.enumerate() if not one.daemon and one is not main]


def _counted(threads: list[threading.Thread]) -> str:
    if not threads:
        return ""
    return f"{len(threads)} thread{'s'[: len(threads) > 1]}"


def _wait_for_threads(began: float, bound_s: float, tell: Tell) -> str:
    """Wait for threads to end, as Python does; return the threads that had to be left, if any.

    Runs in a thread of its own: hooks of `threading` (`concurrent.futures` has some) join theirs
    without a limit.
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
    """Join threads like `threading._shutdown`, which considers the calling thread the
    main thread.
    """
    hooks: list[Callable[[], object]] = threading._threading_atexits  # type: ignore[attr-defined]
    while hooks:
        _attempt(hooks.pop())
    while running := _running():
        for one in running:
            one.join()


def _stop_listeners() -> None:
    """Let queue listeners of `logging` handle what they were given: their threads are daemons."""
    handlers = sys.modules.get("logging.handlers")
    kind = getattr(handlers, "QueueListener", None)
    if kind is None:
        return
    for one in gc.get_objects():
        if isinstance(one, kind) and getattr(one, "_thread", None) is not None:
            _attempt(one.stop)
            # A hook may stop it once more, which older versions do not take.
            one._thread = _Stopped()


class _Stopped:
    """In place of the thread of a listener that was stopped."""

    def __bool__(self) -> bool:
        return False

    def join(self) -> None:
        """Do nothing: the thread has ended."""


# -- Files and finalizers -----------------------------------------------------------------


def _finalize(known: int) -> None:
    """Let what the call's modules hold go, then close the files that are still open."""
    found = exit_needs.finalizable()
    files = [one for one in found if isinstance(one, io.IOBase)]
    others = len(found) > len(files)
    del found
    if others:
        # Like the interpreter: the modules are deleted while their finalizers find all names. Files
        # are held meanwhile, for finalizers to write to.
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
        pass  # to close it will fail as well, and that is told


def _close(file: Any) -> None:
    try:
        if file.closed or _is_standard(file):
            file.flush()
        else:
            file.close()
    except ValueError:
        pass  # closed meanwhile, by what is around it
    except BaseException:
        print(f"Exception ignored in: {file!r}", file=sys.stderr)
        sys.excepthook(*sys.exc_info())


def _is_standard(file: Any) -> bool:
    """Return whether a file writes to an output that others use, too."""
    if file in (sys.stdout, sys.stderr):
        return True
    try:
        return bool(file.fileno() in (1, 2))
    except (OSError, AttributeError, io.UnsupportedOperation):
        return False


def _outermost_first(files: list[Any]) -> list[Any]:
    """Return the files so that none comes before another that writes to it."""
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
    """Return those of the files to which a file refers, however indirectly."""
    seen = {id(file)}
    layer = [file]
    for _ in range(_DEPTH):
        parts = gc.get_referents(*layer)
        layer = [one for one in parts if id(one) not in seen and not isinstance(one, _NOT_BELOW)]
        layer = layer[:_BREADTH]
        seen |= {id(one) for one in layer}
    return (seen & ids) - {id(file)}


_NOT_BELOW = (type, type(sys), type(run), type(run.__code__), str, bytes, int)
