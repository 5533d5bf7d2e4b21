"""Prepares an interpreter for calls, and checks that it may fork.

A zygote uses this once; with the start method ``spawn``, every worker does. The interpreter was
started with ``-S``, so that hooks can be installed before ``site`` runs, whose ``.pth`` files may
import anything.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from .. import wire

from .. import app_directory, call_packages
from ..forking import NotSafe
from ..preloading import process_state
from ..renewal import prepared
from . import bytecode_writes, commands, stack_dumps


def prepare(start: wire.Meta, tell: Callable[..., None]) -> list[Any]:
    """Run ``site``, import the runtime, then the modules to preload.

    Returns the objects that existed before the preloads, for `memory_layout` and
    `immortal_objects`.
    """
    import site

    # First, because imports may read the working directory.
    enter(start["workdir"])
    commands.arrange()
    bytecode_writes.arrange()
    site.main()
    sys.path[:0] = start["path"]
    _look_like_any_interpreter()
    _import_runtime(start["runtime"])
    _stand_in_for_the_program()
    _configure_output()
    _configure_logging(start["log_level"])
    prepared.varying = frozenset(start["varying"])
    prepared.grace_s = start["grace"]
    prepared.exit_s, prepared.exit_answer_s = start["exit_s"], start["exit_answer_s"]
    # Workers use some of these modules, so they are imported before the preloads.
    from ..renewal.surroundings import WATCHED, Surroundings

    if start["preload"]:
        from ..preloading import preloader
    if start["app"]:
        _make_room_for(start["app"])
    objects = gc.get_objects()
    kinds = WATCHED
    if start["preload"]:
        with _recorded_exit_hooks():
            prepared.held, kinds = preloader.preload(start["preload"], start["varying"], tell)
        enter(start["workdir"])
    prepared.surroundings = Surroundings(kinds)
    return objects


@contextmanager
def _recorded_exit_hooks() -> Iterator[None]:
    """Record the exit hooks that imports register: workers inherit them."""
    register = atexit.register

    def recorder(function: Any, /, *args: Any, **kwargs: Any) -> Any:
        prepared.hooks.append(function)
        return register(function, *args, **kwargs)

    atexit.register = recorder
    try:
        yield
    finally:
        for one in (atexit, *sys.modules.values()):
            # Replace it also in modules that imported the name.
            if getattr(one, "__dict__", {}).get("register") is recorder:
                setattr(one, "register", register)  # noqa: B010 - mypy knows of no such name


def enter(directory: str) -> None:
    """Enter the directory in which workers begin, or ``/`` if a call has removed it."""
    try:
        os.chdir(directory)
    except OSError:
        os.chdir("/")


def _look_like_any_interpreter() -> None:
    """Hide this interpreter's flags, because multiprocessing starts children with the same flags.

    Children with flashpool's flags would start without ``site``, and so without the modules that
    ``.pth`` files make importable.
    """
    sys.argv = [""]
    ours = {"isolated", "no_site", "no_user_site", "ignore_environment", "safe_path"}
    names = [name for name in dir(sys.flags) if name[0] != "_" and not name.startswith("n_")]
    values = {name: 0 if name in ours else getattr(sys.flags, name) for name in names}
    del values["count"], values["index"]
    sys.flags = type("flags", (), {"__slots__": (), **values})()


def _import_runtime(packages: dict[str, str]) -> None:
    """Import the modules that every call needs, so that no call pays for them.

    An environment may lack cloudpickle and tblib. Then flashpool's copies are imported. They are
    searched for last, so that they never shadow packages of the environment.
    """
    sys.meta_path.append(_RuntimeFinder(packages))
    from ..serialization import live_module

    # Spawned children run the main module again; the zygote's would wait for a supervisor.
    live_module.prepare()
    call_packages.prepare()
    from ..running import rehearsal  # noqa: F401 - imports what a call needs, such as the worker


def _make_room_for(directory: str) -> None:
    """Import modules that serve an app, then make the app find only its own packages."""
    from ..running.apps import app_worker  # noqa: F401

    finder = next(one for one in sys.meta_path if isinstance(one, _RuntimeFinder))
    sys.meta_path.remove(finder)
    for name, folder in finder.packages.items():
        origin = getattr(getattr(sys.modules.get(name), "__spec__", None), "origin", None)
        if origin == f"{folder}/__init__.py":
            app_directory.forget(name)
    app_directory.put_first(directory)


def _stand_in_for_the_program() -> None:
    """Let ``__main__`` hold functions of a program's main module, for the call and its children."""
    from ..serialization import child_processes, function_unpickling

    main = sys.modules["__main__"]
    # With a spec of this name, multiprocessing's children do not run ``__file__``.
    main.__spec__ = type(sys.__spec__)("__main__", None)
    function_unpickling.main = main.__dict__
    child_processes.install()


class _RuntimeFinder:
    """Finds the named packages in the given folders, and no other packages in these folders."""

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
    """Flush each line of both streams, so that they keep their order; enable stack dumps."""
    import faulthandler
    import signal

    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable(file=2, all_threads=True)
    # Sent to a worker before its call is stopped because of the time limit.
    faulthandler.register(signal.SIGUSR2, file=2, all_threads=True, chain=False)
    stack_dumps.arrange()


def _configure_logging(level: str) -> None:
    """Show records of loggers without configuration; ``basicConfig`` still works."""
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s:%(name)s:%(message)s"))
    handler.setLevel(level)
    logging.lastResort = handler
    logging.getLogger().setLevel(level)


def check_forking_is_safe(module: str) -> None:
    """Raise `NotSafe` if forks of this process would not work."""
    why = process_state.why_not_fork()
    if why is not None:
        raise NotSafe(module, why)
