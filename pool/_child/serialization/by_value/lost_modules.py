"""Loaded modules that another process would not find by their names.

Such a module was created by the program itself, loaded from a path, or loaded by a test runner. Its
contents are pickled by value.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from typing import Any

#: Whether a fresh process would find a module of this name.
_findable: dict[str, bool] = {"__main__": True, "builtins": True}


def is_lost(name: object) -> bool:
    """Return whether a module of that name is loaded, but another process would not find it."""
    if type(name) is not str:
        return False
    found = _findable.get(name)
    if found is None:
        module = sys.modules.get(name)
        if module is None:
            return False
        file = getattr(module, "__file__", None)
        found = _is_in_place(name, module, file) or _can_be_found(name, file)
        _findable[name] = found
    return not found


def take_by_value_if_lost(name: object) -> None:
    """Make cloudpickle pickle everything in a lost module by value."""
    if is_lost(name):
        import cloudpickle

        cloudpickle.register_pickle_by_value(sys.modules[name])  # type: ignore[index]


def _is_in_place(name: str, module: object, file: str | None) -> bool:
    """Return whether the module's file is in its usual place, so that no search is needed."""
    origin = getattr(getattr(module, "__spec__", None), "origin", None)
    if origin in {"built-in", "frozen"}:
        # In Python 3.13, `collections.abc` is `_collections_abc`, with the file of the latter.
        return True
    if type(file) is not str:
        return False
    folder, _, base = file.removesuffix("/__init__.py").rpartition("/")
    place = f"{folder}/{base.partition('.')[0]}"
    suffix = "/" + name.replace(".", "/")
    return place.endswith(suffix) and place.removesuffix(suffix) in sys.path


def _can_be_found(name: str, file: str | None) -> bool:
    """Search as if the module were not loaded; another file of that name does not count."""
    path: Sequence[str] | None = None
    spec: ModuleSpec | None = None
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        spec = _search(".".join(parts[:count]), path)
        if spec is None:
            return False
        path = spec.submodule_search_locations
        if path is None and count < len(parts):
            # The parent is not a package, so it created the module itself (like os.path).
            return True
    return spec is not None and _is_same_file(spec.origin, file)


def _search(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    finders: list[Any] = sys.meta_path
    for finder in finders:
        try:
            spec: ModuleSpec | None = finder.find_spec(name, path)
        except Exception:
            continue  # a finder of the program failed; the next finder may succeed
        if spec is not None:
            return spec
    return None


def _is_same_file(origin: str | None, file: str | None) -> bool:
    if file is None or origin is None or not os.path.isabs(origin):
        return True
    return (
        os.path.splitext(os.path.realpath(origin))[0] == os.path.splitext(os.path.realpath(file))[0]
    )
