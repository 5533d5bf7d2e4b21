"""An app's directory on ``sys.path``: before the standard library, the environment and the base.

    zygote: imports the runtime and hidden modules -> `put_first` -> preloads: the app's own copies
    worker: `reveal` -> the app's modules

As with ``cd app; python -m uvicorn``, a ``queue.py`` of the app hides the standard module from the
app. But modules that were imported earlier, and flashpool's own, must not find the app's file. So a
zygote imports such standard modules beforehand, and a worker forgets them where it loads the app:
no code of the app runs in a zygote.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.machinery import PathFinder

#: Modules that have side effects at import, or are not libraries.
_NOT_IMPORTED = frozenset({"antigravity", "idlelib", "test", "this", "turtledemo"})
#: Modules that an interpreter imports before it searches any directory.
_AT_START = frozenset(
    "__main__ _collections_abc _distutils_hack _sitebuiltins abc builtins codecs encodings genericpath io os "
    "posixpath site sitecustomize stat sys types usercustomize warnings zipimport".split()
)


#: The directory of this worker's app.
_first: list[str] = []


def names_in(directory: str) -> set[str]:
    """Return the modules and packages in a directory; plain folders hide nothing."""
    found = set()
    for entry in os.listdir(directory):
        name = entry.partition(".")[0]
        if name.isidentifier() and name not in found:
            spec = PathFinder.find_spec(name, [directory])
            if spec is not None and spec.origin is not None:
                found.add(name)
    return found


def put_first(directory: str) -> None:
    """In a zygote: put the directory first, after importing standard modules that it hides."""
    for name in names_in(directory):
        if name not in sys.stdlib_module_names:
            forget(name)
        elif name not in _NOT_IMPORTED:
            try:
                importlib.import_module(name)
            except ImportError:
                continue  # a module of another platform
    sys.path.insert(0, directory)


def reveal(directory: str) -> None:
    """In a worker, before any module of the app is imported: forget the modules that it hides."""
    _first[:] = [directory]
    if directory not in sys.path:
        sys.path.insert(0, directory)
    for name in names_in(directory) - _AT_START - set(sys.builtin_module_names):
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if spec is not None and not str(spec.origin).startswith(directory.rstrip("/") + "/"):
            forget(name)


def is_first() -> bool:
    """Return whether this process searches an app's directory first."""
    return bool(_first) and sys.path[:1] == _first


def forget(package: str) -> None:
    """Make the next import load the package again; code that has imported it keeps the old one."""
    for name in [one for one in sys.modules if one.partition(".")[0] == package]:
        del sys.modules[name]
