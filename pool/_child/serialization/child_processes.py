"""Functions of a call's own code, for the children that `multiprocessing` starts in the call.

    multiprocessing.reduction is imported -> `Hook` -> its pickler calls `reduce`
    function of __main__ -> name, and function by value -> eval in the child -> `find`

A forked child has the function already, under its name. A spawned child is a fresh interpreter
without flashpool, and the program's file must not run in it. It imports this package from its
folder, and loads the function into its own ``__main__``. Existing names keep their values, so
functions see variables that an initializer has set.
"""

from __future__ import annotations

import os
import sys
from io import BytesIO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_PATCHED = "multiprocessing.reduction"
#: Evaluated in the child. Every Python's `pickle` finds `eval`.
_THERE = "exec(source, names) or names['find'](path, data, packages)"
_SOURCE = """
import sys
if "_flashpool" not in sys.modules:
    package = type(sys)("_flashpool")
    package.__path__ = [folder]
    sys.modules["_flashpool"] = package
from _flashpool.serialization.child_processes import find
"""
_FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

#: Pickles of objects, by id; with the objects, so that ids stay unique.
_pickled: dict[int, tuple[object, bytes]] = {}


class Hook:
    """Patches `multiprocessing.reduction` when it is imported (``sys.meta_path``)."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, _target: object = None
    ) -> ModuleSpec | None:
        """Part of the import protocol."""
        if name != _PATCHED:
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path)
        loader: Any = spec and spec.loader
        if loader is None:
            return None
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            patch(module)

        loader.exec_module = exec_module
        return spec


def install() -> None:
    """Patch `multiprocessing.reduction` in this process and its forks, now or when imported."""
    loaded = sys.modules.get(_PATCHED)
    if loaded is not None:
        patch(loaded)
    elif Hook not in sys.meta_path:
        sys.meta_path.insert(0, Hook)


def patch(reduction: Any) -> None:
    """Make the pickler call `reduce` first, unless a library has patched it."""
    if "reducer_override" not in vars(reduction.ForkingPickler):
        reduction.ForkingPickler.reducer_override = lambda _, obj: reduce(obj)


def reduce(obj: Any) -> Any:
    """Reduce a function or class that a child may not find by its name."""
    kind = type(obj)
    if kind.__name__ not in {"function", "_lru_cache_wrapper"} and not isinstance(obj, type):
        return NotImplemented
    path = f"{obj.__module__}.{obj.__qualname__}"
    known = _at(path) is obj
    if known and obj.__module__ != "__main__":
        return NotImplemented
    data, packages = _by_value(obj)
    names = {
        "source": _SOURCE,
        "folder": _FOLDER,
        "path": path if known else None,
        "data": data,
        "packages": packages,
    }
    return eval, (_THERE, {"names": names, **names})


def _at(path: str | None) -> Any:
    """Return the object at a path that begins with a module; None if it does not exist."""
    if path is None:
        return None
    found: Any = sys.modules
    module, _, names = path.partition(".")
    found = sys.modules.get(module)
    for name in names.split("."):
        found = getattr(found, name, None)
    return found


def _by_value(obj: Any) -> tuple[bytes, str]:
    """Return the pickle of an object, and the path of cloudpickle."""
    import cloudpickle

    from .by_value.pickler import Pickler

    packages: str = os.path.dirname(cloudpickle.__file__)
    known = _pickled.get(id(obj))
    if known is not None:
        return known[1], packages
    file = BytesIO()
    Pickler(file, anew=True).dump(obj)
    _pickled[id(obj)] = obj, file.getvalue()
    return file.getvalue(), packages


# In the child.


def find(path: str | None, data: bytes, packages: str) -> Any:
    """Return the existing function or class of that name, or else the one that was sent."""
    found = _at(path)
    if found is not None:
        return found
    _have_cloudpickle(packages)
    install()
    from .function_unpickling import FirstWins

    loaded = FirstWins(BytesIO(data), sys.modules["__main__"].__dict__).load()
    if path is not None and path.count(".") == 1:
        setattr(sys.modules["__main__"], path.partition(".")[2], loaded)
    return loaded


def _have_cloudpickle(packages: str) -> None:
    """Import cloudpickle from flashpool's copy if the environment lacks it."""
    from importlib.util import find_spec, module_from_spec, spec_from_file_location

    if "cloudpickle" in sys.modules or find_spec("cloudpickle") is not None:
        return
    spec = spec_from_file_location(
        "cloudpickle", f"{packages}/__init__.py", submodule_search_locations=[packages]
    )
    if spec is not None and spec.loader is not None:
        sys.modules["cloudpickle"] = module = module_from_spec(spec)
        spec.loader.exec_module(module)
