"""Makes the modules shipped with a request importable, from memory.

    {path: source} -> checked -> {name: Source} -> Finder on sys.meta_path

Nothing is written, so nothing is left behind, or found by a later call. The finder stays
until the process ends: through the call and all it awaits. It comes first, as a script's
own folder does on ``sys.path``; names of the standard library are refused instead.
"""

from __future__ import annotations

import sys

from ..wire import BadRequest
from .source_loader import ModuleSpec, Source, check_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_MODULES = 1000
MAX_MODULE_BYTES = 8 * 1024 * 1024
MAX_DEPTH = 20

#: Top-level names that are not the standard library's, and yet not for users to replace:
#: what the interpreter runs at its start, and what carries the result home.
RESERVED = frozenset(
    {"__main__", "sitecustomize", "usercustomize", "cloudpickle", "tblib", "_flashpool"}
)


class Finder:
    """Imports the modules of a request from memory, ahead of installed packages."""

    def __init__(self, sources: dict[str, Source]) -> None:
        self.sources = sources

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, _target: object = None
    ) -> ModuleSpec | None:
        """Part of the import protocol (``sys.meta_path``)."""
        source = self.sources.get(name)
        if source is None:
            return None
        spec = ModuleSpec(
            name,
            source,  # type: ignore[arg-type]
            origin=source.filename,
            is_package=source.is_package,
        )
        spec.has_location = True
        if source.is_package:
            spec.submodule_search_locations = _search_path(name, source, path)
        return spec


def _search_path(name: str, source: Source, path: Sequence[str] | None) -> list[str]:
    locations = [source.filename.rpartition("/")[0]]
    if not source.text:
        # A folder without code of its own may be a part of an installed namespace
        # package (google, azure): keep the other parts importable.
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is None:
            locations += spec.submodule_search_locations or []
    return locations


def install_modules(modules: Mapping[str, str]) -> Finder:
    """Make modules importable in this process until it ends, in place of any before.

    Raises:
        BadRequest: a path is not that of an importable module, or there is too much.
    """
    finder = Finder(_sources(modules))
    sys.meta_path[:] = [finder, *(f for f in sys.meta_path if not isinstance(f, Finder))]
    _forget({name.partition(".")[0] for name in finder.sources})
    return finder


def _forget(packages: set[str]) -> None:
    """Drop what the zygote, or the call before, imported under these names."""
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]


def _sources(modules: Mapping[str, str]) -> dict[str, Source]:
    if len(modules) > MAX_MODULES:
        raise BadRequest(f"modules: {len(modules)} files, more than {MAX_MODULES}")
    sources: dict[str, Source] = {}
    size = 0
    for path, text in modules.items():
        size += check_text(f"modules[{path!r}]", text)
        _add(sources, path, text)
    if size > MAX_MODULE_BYTES:
        raise BadRequest(f"modules: {size} bytes of source, more than {MAX_MODULE_BYTES}")
    _add_packages(sources)
    return sources


def _add(sources: dict[str, Source], path: str, text: str) -> None:
    parts = _module_parts(path)
    is_package = parts[-1] == "__init__"
    name = ".".join(parts[:-1] if is_package else parts)
    known = sources.get(name)
    # pkg/__init__.py wins over pkg.py, as it does on disk.
    if known is None or not known.is_package:
        sources[name] = Source(text, f"flash:{path}", is_package=is_package)


def _add_packages(sources: dict[str, Source]) -> None:
    """A folder without an ``__init__.py`` becomes an empty package."""
    for name in tuple(sources):
        parent = name.rpartition(".")[0]
        while parent and parent not in sources:
            filename = f"flash:{parent.replace('.', '/')}/__init__.py"
            sources[parent] = Source("", filename, is_package=True)
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
