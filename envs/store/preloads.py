"""Lists of modules that calls of an environment imported, which the next zygote preloads.

    preloads/<digest>.json on the shared root: another pod learns from this pod's calls.

Names are data from user processes: only identifiers with dots are accepted, limited in number and
length. The reader decides whether to import a module.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from .layout import Store, read_json, write_json

__all__ = ["Preloads", "clean_modules", "read_preloads", "write_preloads"]

MAX_MODULES: Final = 200
_MAX_NAME: Final = 200
#: Most bytes of a file: twice as many names, each of the greatest length.
_LARGEST: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Preloads:
    """Modules, and the packages that are named in the source of the calls that imported them."""

    modules: tuple[str, ...] = ()
    entries: tuple[str, ...] = ()


def clean_modules(names: Iterable[object]) -> tuple[str, ...]:
    """Return valid module names, each once, in the given order."""
    kept: dict[str, None] = {}
    for name in names:
        if isinstance(name, str) and len(name) <= _MAX_NAME and _is_module(name):
            kept.setdefault(name)
        if len(kept) >= MAX_MODULES:
            break
    return tuple(kept)


def _is_module(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def read_preloads(store: Store, digest: str) -> Preloads:
    """Return the list for a digest; blocking."""
    value = read_json(store.preloads(digest), _LARGEST) or {}
    modules, entries = value.get("modules"), value.get("entries")
    return Preloads(
        modules=clean_modules(modules) if isinstance(modules, list) else (),
        entries=clean_modules(entries) if isinstance(entries, list) else (),
    )


def write_preloads(store: Store, digest: str, preloads: Preloads) -> None:
    """Replace the list for a digest; blocking."""
    noted = {"modules": list(preloads.modules), "entries": list(preloads.entries)}
    write_json(store.preloads(digest), noted)
