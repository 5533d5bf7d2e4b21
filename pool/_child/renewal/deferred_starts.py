"""Threads that a library starts when it is imported: each worker starts its own.

    zygote:  with DeferredStarts(): import ... -> calls that start threads are only recorded
    worker:  Held.renew() -> the recorded calls are made, before user code runs

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

#: C modules, and the function of each that starts threads. ``polars/__init__.py`` calls it once,
#: with a function that shows warnings. Polars has such a module for each size of index, and one for
#: old processors.
STARTS = {
    "_polars_runtime_32._polars_runtime": "__register_startup_deps",
    "_polars_runtime_64._polars_runtime": "__register_startup_deps",
    "_polars_runtime_compat._polars_runtime": "__register_startup_deps",
}


class DeferredStarts:
    """Records calls of the functions in `STARTS` during imports, instead of making them."""

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
        """Arrange that the function is replaced as soon as its module is loaded."""
        function = STARTS.get(name)
        if function is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: Any) -> None:
            del loader.exec_module  # uncovers the method of the class
            execute(module)
            self._replace(module, function)

        loader.exec_module = exec_module
        return spec

    def _replace(self, module: Any, name: str) -> None:
        function = getattr(module, name, None)
        if function is None:
            return  # a version that may start threads elsewhere, which a scout would notice

        def recorder(*args: Any, **kwargs: Any) -> None:
            self.calls.append((function, args, kwargs))

        setattr(module, name, recorder)
        self._replaced.append((module, name, function, recorder))
