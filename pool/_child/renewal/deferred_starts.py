"""Threads that a library starts when it is imported: each worker starts its own.

    zygote:  with DeferredStarts(): import ... -> the function that starts them is only recorded
    worker:  Held.renew() -> the recorded calls are made, before the user's code runs

A fork does not have its zygote's threads, so a module that starts one is not preloaded. If a single
function of a library starts all of them, and nothing else in the import needs it, the library is
preloaded without that call. Other libraries that start threads are not preloaded.
"""

from __future__ import annotations

import importlib.machinery
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

#: C modules, and for each the function that starts threads. ``polars/__init__.py`` calls it once,
#: with the function that shows warnings; there is one such module for each size of index, and one
#: for old processors.
STARTS = {
    "_polars_runtime_32._polars_runtime": "__register_startup_deps",
    "_polars_runtime_64._polars_runtime": "__register_startup_deps",
    "_polars_runtime_compat._polars_runtime": "__register_startup_deps",
}


class DeferredStarts:
    """While modules are imported: calls of the functions in `STARTS` are recorded, not made."""

    def __init__(self) -> None:
        #: Calls that each worker must make: functions and their arguments.
        self.calls: list[tuple[Callable[..., object], tuple[Any, ...], dict[str, Any]]] = []
        self._replaced: list[tuple[Any, str, Callable[..., object], Callable[..., None]]] = []

    def __enter__(self) -> DeferredStarts:
        sys.meta_path.insert(0, self)
        return self

    def __exit__(self, *_exc: object) -> None:
        sys.meta_path.remove(self)
        for module, name, function, recorder in self._replaced:
            for one in (module, *sys.modules.values()):
                # Replace it also in modules that imported the name.
                if getattr(one, "__dict__", {}).get(name) is recorder:
                    setattr(one, name, function)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, _target: object = None
    ) -> Any:
        """Make sure that the function is replaced as soon as its module is loaded."""
        function = STARTS.get(name)
        if function is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: Any) -> None:
            del loader.exec_module  # the class's own, from here on
            execute(module)
            self._replace(module, function)

        loader.exec_module = exec_module
        return spec

    def _replace(self, module: Any, name: str) -> None:
        function = getattr(module, name, None)
        if function is None:
            return  # another version, which may start its threads elsewhere: a scout would see them

        def recorder(*args: Any, **kwargs: Any) -> None:
            self.calls.append((function, args, kwargs))

        setattr(module, name, recorder)
        self._replaced.append((module, name, function, recorder))
