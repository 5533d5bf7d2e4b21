"""What calls of an environment imported, so that the next zygote imports it first.

    preloads/<digest>.json on the shared root: another pod learns from this one's calls.

Names are data from user processes: identifiers with dots only, bounded in number
and length. Whether to import one is the reader's decision.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from .store import Store, read_json, write_json

__all__ = ["clean_modules", "read_preloads", "write_preloads"]

MAX_MODULES: Final = 200
_MAX_NAME: Final = 200


def clean_modules(names: Iterable[object]) -> tuple[str, ...]:
    """What may be a module's name, each once, in the order given."""
    kept: dict[str, None] = {}
    for name in names:
        if isinstance(name, str) and len(name) <= _MAX_NAME and _is_module(name):
            kept.setdefault(name)
        if len(kept) >= MAX_MODULES:
            break
    return tuple(kept)


def _is_module(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def read_preloads(store: Store, digest: str) -> tuple[str, ...]:
    """What is known for a digest; blocking."""
    value = read_json(store.preloads(digest))
    names = value.get("modules") if value else None
    return clean_modules(names) if isinstance(names, list) else ()


def write_preloads(store: Store, digest: str, modules: Iterable[str]) -> None:
    """Replace what is known for a digest; blocking."""
    write_json(store.preloads(digest), {"modules": list(clean_modules(modules))})
