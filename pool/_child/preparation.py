"""What an interpreter does before it can take calls, and the check that it may fork.

Used by a zygote once, or by every worker itself when the start method is ``spawn``.
The interpreter came up with ``-S``, so that hooks can be put in place before ``site``
(whose ``.pth`` files may import anything) runs.
"""

from __future__ import annotations

import gc
import os
import sys
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator
    from typing import Any

    from . import randomness, wire
    from .surroundings import Surroundings

from . import process_state

#: Forks without the hooks that `defer_lock_hooks` holds back.
fork = os.fork
_deferred: list[dict[str, Callable[[], None]]] = []
#: The main thread's object, for what the hooks would have told it: its new kernel id.
main_thread: threading.Thread
#: What workers renew, where modules were preloaded; and the process as calls find it.
held: randomness.Held | None = None
surroundings: Surroundings
#: Variables of which each call has its own value.
varying: frozenset[str] = frozenset()
#: Kinds of surroundings that calls are watched for where nothing was preloaded: a change of the
#: locale or of filters of warnings may be that of an import in the call.
WATCHED = frozenset(("argv", "cwd"))


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
    of other modules that are there before the preloads are left alone.
    """
    global main_thread
    with hooks_deferred():
        import logging  # noqa: F401 - for its hooks
        import threading
    main_thread = threading.main_thread()
    os.fork = _hooks_first(os.fork)
    os.forkpty = _hooks_first(os.forkpty)


@contextmanager
def hooks_deferred() -> Iterator[None]:
    """Keep hooks that imports register for when user code forks: a worker is no fork to them."""
    register = os.register_at_fork
    os.register_at_fork = lambda **hooks: _deferred.append(hooks)
    try:
        yield
    finally:
        os.register_at_fork = register


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
    global held, surroundings, varying
    import site

    # Imports may look at where they are run.
    enter(start["workdir"])
    site.main()
    sys.path[:0] = start["path"]
    _look_like_any_interpreter()
    _import_runtime(start["runtime"])
    _configure_output()
    _configure_logging(start["log_level"])
    varying = frozenset(start["varying"])
    # Workers use some of it: so it belongs to what is there before the preloads.
    from .surroundings import Surroundings

    if start["preload"]:
        from . import preloading
    objects = gc.get_objects()
    kinds = WATCHED
    if start["preload"]:
        held, kinds = preloading.preload(start["preload"], start["varying"], tell)
        enter(start["workdir"])
    surroundings = Surroundings(kinds)
    return objects


def enter(directory: str) -> None:
    """Where workers begin; an earlier call may have removed it."""
    try:
        os.chdir(directory)
    except OSError:
        os.chdir("/")


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


def check_forking_is_safe(module: str) -> None:
    """Raise `NotSafe` when a fork of this process would inherit a broken world."""
    why = process_state.why_not_fork()
    if why is not None:
        raise NotSafe(module, why)
