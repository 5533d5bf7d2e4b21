"""Makes the modules of a request importable, as files in the call's own folder.

    {path: source} -> checked -> files in the call's folder -> Finder on sys.meta_path
                                                            -> sys.path, PYTHONPATH

They are files because other code looks for files: `pkgutil`, `inspect`, child processes. The folder
is deleted with the call. The finder stays until the process exits. The folder is searched first,
like a script's own folder on ``sys.path``; names of the standard library are refused.
"""

from __future__ import annotations

import os
import sys

from .. import call_files
from ..wire import BadRequest
from . import live_module
from .source_loader import ModuleSpec, check_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from importlib.machinery import PathFinder, SourceFileLoader
    from importlib.util import spec_from_file_location
else:
    # All three, without imports.
    _external = sys.modules["_frozen_importlib_external"]
    PathFinder = _external.PathFinder
    SourceFileLoader = _external.SourceFileLoader
    spec_from_file_location = _external.spec_from_file_location

MAX_MODULES = 1000
MAX_MODULE_BYTES = 8 * 1024 * 1024
MAX_DEPTH = 20
_INIT = "/__init__.py"

#: Top-level names outside the standard library that users must not replace: modules that the
#: interpreter runs at its start, and modules that encode the result.
RESERVED = frozenset(
    {
        "__main__",
        "__flash_live__",
        "__runpod_live__",
        "sitecustomize",
        "usercustomize",
        "cloudpickle",
        "tblib",
        "_flashpool",
    }
)


class ShippedLoader(SourceFileLoader):
    """Loads a module of the request; the loader's class tells such modules from installed ones."""


class Finder:
    """Imports the modules of a request, ahead of installed packages."""

    def __init__(self, folder: str, paths: dict[str, str], empty: frozenset[str]) -> None:
        self.folder = folder
        #: By module name: the file in the folder, for packages ``.../__init__.py``.
        self.paths = paths
        #: Packages without code of their own.
        self.empty = empty

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, _target: object = None
    ) -> ModuleSpec | None:
        """Part of the import protocol (``sys.meta_path``)."""
        relative = self.paths.get(name)
        if relative is None:
            return None
        file = f"{self.folder}/{relative}"
        locations = None
        if relative.endswith(_INIT):
            locations = [file[: -len(_INIT)], *(self._elsewhere(name, path))]
        return spec_from_file_location(
            name,
            file,
            loader=ShippedLoader(name, file),
            submodule_search_locations=locations,
        )

    def _elsewhere(self, name: str, path: Sequence[str] | None) -> list[str]:
        """Return folders of an installed namespace package (google, azure) of the same name.

        Its modules stay importable.
        """
        return _parts_elsewhere(name, path) if name in self.empty else []


def install_modules(modules: Mapping[str, str]) -> Finder:
    """Make modules importable in this process, in place of those of an earlier call.

    Raises:
        BadRequest: a path is not that of an importable module, or a limit is exceeded.
        OSError: the files cannot be written.
    """
    paths = _checked(modules)
    folder = live_module.new_folder()
    for path, text in modules.items():
        _write(f"{folder}/{path}", text)
    for name, path in paths.items():
        if path not in modules:
            _write(f"{folder}/{path}", _joining(name))
    empty = {name for name, path in paths.items() if not modules.get(path)}
    finder = Finder(folder, paths, frozenset(empty))
    sys.meta_path[:] = [finder, *(f for f in sys.meta_path if not isinstance(f, Finder))]
    _show(folder)
    _forget({name.partition(".")[0] for name in finder.paths})
    return finder


def _write(file: str, text: str) -> None:
    os.makedirs(os.path.dirname(file), exist_ok=True)
    live_module.write_text(file, text)


def _joining(name: str) -> str:
    """Return an ``__init__.py`` for a package without one: child processes have no `Finder`."""
    if not _parts_elsewhere(name.partition(".")[0], None):
        return ""
    return "import pkgutil\n\n__path__ = pkgutil.extend_path(__path__, __name__)\n"


def _parts_elsewhere(name: str, path: Sequence[str] | None) -> list[str]:
    """Return the folders of an installed namespace package of that name, if any."""
    path = [one for one in (sys.path if path is None else path) if not call_files.holds(one)]
    spec = PathFinder.find_spec(name, path)
    if spec is None or spec.loader is not None:
        return []
    return list(spec.submodule_search_locations or ())


def _show(folder: str) -> None:
    """Make the folder visible to child processes, and to code that searches the path."""
    sys.path[:] = [folder, *(one for one in sys.path if not call_files.holds(one))]
    others = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{others}" if others else folder


def _forget(packages: set[str]) -> None:
    """Forget modules that the zygote, or an earlier call, imported under these names."""
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]


def _checked(modules: Mapping[str, str]) -> dict[str, str]:
    """Return the names of the modules, with the path of each."""
    if len(modules) > MAX_MODULES:
        raise BadRequest(f"modules: {len(modules)} files, more than {MAX_MODULES}")
    paths: dict[str, str] = {}
    size = 0
    for path, text in modules.items():
        size += check_text(f"modules[{path!r}]", text)
        _add(paths, path)
    if size > MAX_MODULE_BYTES:
        raise BadRequest(f"modules: {size} bytes of source, more than {MAX_MODULE_BYTES}")
    _add_packages(paths)
    return paths


def _add(paths: dict[str, str], path: str) -> None:
    parts = _module_parts(path)
    is_package = parts[-1] == "__init__"
    name = ".".join(parts[:-1] if is_package else parts)
    # pkg/__init__.py wins over pkg.py, as it does on disk.
    if not paths.get(name, "").endswith(_INIT):
        paths[name] = path


def _add_packages(paths: dict[str, str]) -> None:
    """Add a package for each folder without an ``__init__.py``."""
    for name in tuple(paths):
        parent = name.rpartition(".")[0]
        while parent and parent not in paths:
            paths[parent] = f"{parent.replace('.', '/')}{_INIT}"
            parent = parent.rpartition(".")[0]


def _module_parts(path: str) -> list[str]:
    parts = path[:-3].split("/")
    if not path.endswith(".py") or not all(part.isidentifier() for part in parts):
        raise BadRequest(
            f"modules: {path[:200]!r} is not the path of a module; expected names joined by '/' "
            "and ending in '.py', relative to the folder of the main file"
        )
    if len(parts) > MAX_DEPTH:
        raise BadRequest(f"modules: {path[:200]!r} is more than {MAX_DEPTH} folders deep")
    if parts == ["__init__"]:
        raise BadRequest("modules: '__init__.py' is in no package")
    if parts[0] in sys.stdlib_module_names or parts[0] in RESERVED:
        raise BadRequest(f"modules: {path!r} would replace the module {parts[0]!r}; rename it")
    return parts
