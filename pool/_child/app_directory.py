"""An app's directory on ``sys.path``: before the standard library, the environment and the base.

    zygote: what is needed from elsewhere is imported -> `put_first` -> preloads: the app's own copies
    worker: `reveal` -> the app's modules

It is as with ``cd app; python -m uvicorn``: a ``queue.py`` of the app's hides the standard one for
the app. But nothing that was imported before, and nothing of ours, finds that in its place. So in a
zygote such standard modules are imported beforehand, and forgotten where the app is loaded: no code
of the app's runs in a zygote.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.machinery import PathFinder

#: They do something when they are imported, or are no library.
_NOT_IMPORTED = frozenset({"antigravity", "idlelib", "test", "this", "turtledemo"})
#: What an interpreter has imported before it looks at any directory.
_AT_START = frozenset(
    "__main__ _collections_abc _distutils_hack _sitebuiltins abc builtins codecs encodings genericpath io os "
    "posixpath site sitecustomize stat sys types usercustomize warnings zipimport".split()
)


#: The directory of the app that this worker has.
_first: list[str] = []


def names_in(directory: str) -> set[str]:
    """Modules and packages that an import finds there; a folder that is no package hides nothing."""
    found = set()
    for entry in os.listdir(directory):
        name = entry.partition(".")[0]
        if name.isidentifier() and name not in found:
            spec = PathFinder.find_spec(name, [directory])
            if spec is not None and spec.origin is not None:
                found.add(name)
    return found


def put_first(directory: str) -> None:
    """In a zygote, when all is imported that is needed from elsewhere."""
    for name in names_in(directory):
        if name not in sys.stdlib_module_names:
            forget(name)
        elif name not in _NOT_IMPORTED:
            try:
                importlib.import_module(name)
            except ImportError:
                continue  # of another platform
    sys.path.insert(0, directory)


def reveal(directory: str) -> None:
    """In a worker, before any module of the app's is imported: what it hides is hidden."""
    _first[:] = [directory]
    if directory not in sys.path:
        sys.path.insert(0, directory)
    for name in names_in(directory) - _AT_START - set(sys.builtin_module_names):
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if spec is not None and not str(spec.origin).startswith(directory.rstrip("/") + "/"):
            forget(name)


def is_first() -> bool:
    """Whether this process has an app's directory in front."""
    return bool(_first) and sys.path[:1] == _first


def forget(package: str) -> None:
    """The next import of it looks for it anew; who has it keeps it."""
    for name in [one for one in sys.modules if one.partition(".")[0] == package]:
        del sys.modules[name]
