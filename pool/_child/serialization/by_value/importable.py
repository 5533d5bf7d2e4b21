"""Finds where another process can import an object: by its own name, or from a module that has it.

Used with cloudpickle, which keeps a list of modules to pickle by value.
"""

from __future__ import annotations

import sys
import types
from collections import OrderedDict

import cloudpickle

from ..live_module import BY_VALUE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Objects that were searched for in modules; kept, so that ids stay unique. The oldest are dropped.
_places: OrderedDict[int, tuple[object, tuple[types.ModuleType, str] | None]] = OrderedDict()
_PLACES = 1000


def is_importable(obj: Any) -> bool:
    """Return whether another process can import this object by its own name."""
    module, name = getattr(obj, "__module__", None), getattr(obj, "__qualname__", None)
    if not isinstance(module, str) or module in BY_VALUE or not isinstance(name, str):
        return False
    found: object = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is obj and not _is_taken_by_value(module)


def _is_taken_by_value(module: str) -> bool:
    """Return whether cloudpickle pickles the module, or a package around it, by value."""
    taken: set[str] = cloudpickle.list_registry_pickle_by_value()
    parts = module.split(".")
    return any(".".join(parts[:count]) in taken for count in range(1, len(parts) + 1))


def place_of(obj: object) -> tuple[types.ModuleType, str] | None:
    """Return an importable module that has this object, and its name there."""
    known = _places.get(id(obj))
    if known is not None and (known[1] is None or _is_at(obj, *known[1])):
        return known[1]
    found = _search(obj)
    _places[id(obj)] = obj, found
    while len(_places) > _PLACES:
        _places.popitem(last=False)
    return found


def _is_at(obj: object, module: types.ModuleType, name: str) -> bool:
    """Return whether the module still has the object: a program may have changed the value."""
    return vars(module).get(name) is obj


def _search(obj: object) -> tuple[types.ModuleType, str] | None:
    for name, module in list(sys.modules.items()):
        if name in BY_VALUE or name.startswith(("_flashpool", "flashpool.pool._child")):
            continue
        if type(module) is not types.ModuleType or vars(module).get("__spec__") is None:
            continue
        for key, value in list(vars(module).items()):
            if value is obj and not _is_taken_by_value(name):
                return module, key
    return None
