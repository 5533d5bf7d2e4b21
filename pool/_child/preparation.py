"""What an interpreter does before it can take calls, and the check that it may fork.

Used by a zygote once, or by every worker itself when the start method is ``spawn``.
The interpreter came up with ``-S``, so that hooks can be put in place before ``site``
(whose ``.pth`` files may import anything) runs.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from typing import Any

    from . import wire

from . import processes
from .wire import LOADING, SKIPPED

#: Forks without the hooks that `defer_lock_hooks` holds back.
fork = os.fork
_deferred: list[dict[str, Callable[[], None]]] = []
#: The main thread's object, for what the hooks would have told it: its new kernel id.
main_thread: threading.Thread


class NotSafe(Exception):
    """This process must not fork workers: ``module`` made it so, ``why`` says how."""

    def __init__(self, module: str, why: str) -> None:
        super().__init__(module, why)
        self.module = module
        self.why = why


def defer_lock_hooks() -> None:
    """Import ``threading`` and ``logging`` without their hooks at fork.

    The hooks renew locks that other threads may have held. A zygote has one thread and
    holds none when it forks, so for its forks they have nothing to do, and they took
    more than half of a worker's start. They are registered when user code forks. Hooks
    of all other modules (such as ``random``, which must reseed) are left alone.
    """
    global main_thread
    register = os.register_at_fork
    os.register_at_fork = lambda **hooks: _deferred.append(hooks)
    try:
        import logging  # noqa: F401 - for its hooks
        import threading
    finally:
        os.register_at_fork = register
    main_thread = threading.main_thread()
    os.fork = _hooks_first(os.fork)
    os.forkpty = _hooks_first(os.forkpty)


def _hooks_first(function: Callable[[], Any]) -> Callable[[], Any]:
    def fork() -> Any:
        while _deferred:
            os.register_at_fork(**_deferred.pop(0))
        return function()

    fork.__doc__ = function.__doc__
    return fork


def prepare(start: wire.Meta, tell: Callable[..., None]) -> list[Any]:
    """Run ``site``, import the runtime, then the modules to preload.

    Returns what there was before the preloads, for `arrangement` and `lasting`.
    """
    import site

    site.main()
    sys.path[:0] = start["path"]
    _look_like_any_interpreter()
    _import_runtime(start["runtime"])
    _configure_output()
    _configure_logging(start["log_level"])
    objects = gc.get_objects()
    for module in start["preload"]:
        tell(LOADING, module=module)
        _preload(module, tell)
    return objects


def _look_like_any_interpreter() -> None:
    """Hide how we were started: multiprocessing starts children with the same flags.

    With ours they would come up without ``site``, and so without what its ``.pth`` files
    make importable.
    """
    sys.argv = [""]
    ours = {"isolated", "no_site", "no_user_site", "ignore_environment", "safe_path"}
    names = [name for name in dir(sys.flags) if name[0] != "_" and not name.startswith("n_")]
    values = {name: 0 if name in ours else getattr(sys.flags, name) for name in names}
    del values["count"], values["index"]
    sys.flags = type("flags", (), {"__slots__": (), **values})()
    # Children that are spawned run the main module again: ours would wait for a supervisor.
    sys.modules["__main__"] = type(sys)("__main__")


def _import_runtime(packages: dict[str, str]) -> None:
    """Import what every call needs, so that no call pays for it.

    An environment may come without cloudpickle and tblib; then ours are found, after
    everything else, so that they never shadow what it has.
    """
    sys.meta_path.append(_RuntimeFinder(packages))
    from . import worker  # noqa: F401 - and all that it imports


class _RuntimeFinder:
    """Finds the named packages in the folders given, and nothing else beside them."""

    def __init__(self, packages: dict[str, str]) -> None:
        self.packages = packages

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        folder = self.packages.get(name)
        if folder is None:
            return None
        from importlib.util import spec_from_file_location

        return spec_from_file_location(
            name, f"{folder}/__init__.py", submodule_search_locations=[folder]
        )


def _configure_output() -> None:
    """Lines of both streams go out in the order in which they were written."""
    import faulthandler
    import signal

    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable(file=2, all_threads=True)
    # The supervisor sends it before it ends a call that takes too long.
    faulthandler.register(signal.SIGUSR2, file=2, all_threads=True, chain=False)


def _configure_logging(level: str) -> None:
    """Show records of loggers that nobody configured; ``basicConfig`` still works."""
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s:%(name)s:%(message)s"))
    handler.setLevel(level)
    logging.lastResort = handler
    logging.getLogger().setLevel(level)


def _preload(module: str, tell: Callable[..., None]) -> None:
    try:
        importlib.import_module(module)
    except BaseException as error:
        tell(SKIPPED, module=module, why=f"{type(error).__name__}: {error}"[:500])
    check_forking_is_safe(module)


def check_forking_is_safe(module: str) -> None:
    """Raise `NotSafe` when a fork of this process would inherit a broken world."""
    if _threads() > 1:
        # A library that knows of forks, as OpenBLAS, ends its threads before one, and
        # starts them again when they are needed. Try it.
        pid = fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    threads = _threads()
    if threads > 1:
        raise NotSafe(module, f"it started {threads - 1} thread(s), which a fork does not copy")
    if _cuda_is_initialised():
        raise NotSafe(module, "it initialised CUDA, which cannot be used after a fork")
    if not _child_ends_are_told():
        raise NotSafe(module, "it ignores or handles SIGCHLD, without which no fork's end is seen")
    if any(now < before for now, before in zip(_limits(), _LIMITS, strict=True)):
        raise NotSafe(module, "it lowered a limit (RLIMIT_NOFILE, RLIMIT_NPROC) that forks need")


def _child_ends_are_told() -> bool:
    """Whether SIGCHLD is as a zygote needs it: ignored, its workers would leave no status."""
    bit = 1 << (signal.SIGCHLD - 1)
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        masks = [line.split()[1] for line in status if line.startswith(("SigIgn", "SigCgt"))]
    return not any(int(mask, 16) & bit for mask in masks)


def _limits() -> tuple[float, ...]:
    """How many descriptors and processes this one may have."""
    return processes.limit_of(processes.DESCRIPTORS), processes.limit_of(processes.PROCESSES)


_LIMITS = _limits()


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _cuda_is_initialised() -> bool:
    """Ask the driver, if it is loaded: ``cuDeviceGetCount`` fails before ``cuInit``."""
    import ctypes

    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        libraries = {line.split()[-1] for line in maps if "/libcuda.so" in line}
    for path in libraries:
        try:
            count = ctypes.c_int()
            #: CUDA_ERROR_NOT_INITIALIZED (cuda.h)
            return bool(ctypes.CDLL(path).cuDeviceGetCount(ctypes.byref(count)) != 3)
        except (OSError, AttributeError):
            continue
    return False
