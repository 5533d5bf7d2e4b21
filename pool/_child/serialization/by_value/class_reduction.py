"""Preserves what cloudpickle loses of a class that is pickled by value.

cloudpickle creates an empty class with the same bases, then sets its attributes. That loses the
qualified name of a nested class, attributes equal to those of a base, and, of enums, aliases,
attributes and combined members. It fails for private slots, for builtin types that have another
name in their module, and if a base or metaclass needs keywords of the ``class`` statement.
"""

from __future__ import annotations

import sys
import types

from ..live_module import BY_VALUE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Reduced = Any

_ENUM = "_make_skeleton_enum"
_CLASS = "_make_skeleton_class"
#: Attributes that every enum member has.
_MEMBER = frozenset(
    ("_value_", "_name_", "__objclass__", "_sort_order_", "_inverted_", "name", "value")
)


def reduce(cls: type, reduced: Reduced) -> Reduced:
    """Complete cloudpickle's reduction of a class."""
    if not is_by_value(reduced):
        return reduced
    if (place := _under_another_name(cls)) is not None:
        return getattr, place
    make, arguments, (attributes, slots), *_, fill = reduced
    if make.__name__ == _ENUM:
        return _enum(cls, make, arguments, (attributes, slots), fill)
    meta, name, bases, kwargs, *tracked = arguments
    kwargs["__qualname__"] = cls.__qualname__
    for key, value in vars(cls).items():
        if type(value) is types.MemberDescriptorType:
            attributes.pop(key, None)  # of a slot: creating the class creates it
        elif key not in attributes and not key.startswith(("__", "_abc_")):
            attributes[key] = value
    arguments = meta, name, bases, kwargs, *tracked
    if _has_hooks(cls):
        make, arguments = make_class, (make, arguments)
    return make, arguments, (attributes, slots), None, None, fill


def is_by_value(reduced: Reduced) -> bool:
    """Return whether a class is pickled by value, and not by name."""
    if type(reduced) is not tuple or len(reduced) != 6:
        return False
    return getattr(reduced[0], "__name__", None) in (_ENUM, _CLASS, "make_class")


def _under_another_name(cls: type) -> tuple[types.ModuleType, str] | None:
    """Find a type whose own name is wrong: the type of locks is ``_thread.LockType``."""
    module = sys.modules.get(cls.__module__)
    if module is None or cls.__module__ in BY_VALUE:
        return None
    if "<locals>" in cls.__qualname__ or hasattr(cls, "__weakref__"):
        return None
    names = (name for name, value in list(vars(module).items()) if value is cls)
    name = next(names, None)
    return None if name is None else (module, name)


def _enum(cls: Any, make: Any, arguments: Any, state: Any, fill: Any) -> Reduced:
    bases, name, qualname, _, *rest = arguments
    members = {key: member._value_ for key, member in cls.__members__.items()}
    attributes, _ = state
    for key in members:
        attributes.pop(key, None)
    own = {key: _own(member) for key, member in cls.__members__.items()}
    if any(own.values()):
        state, fill = (fill, state, own), fill_enum
    return make, (bases, name, qualname, members, *rest), state, None, None, fill


def _own(member: Any) -> dict[str, Any]:
    there = getattr(member, "__dict__", {})
    return {name: value for name, value in there.items() if name not in _MEMBER}


def fill_enum(cls: Any, state: Any) -> None:
    """Set the attributes that the class's ``__new__`` or ``__init__`` had set in each member."""
    fill, attributes, own = state
    fill(cls, attributes)
    for name, values in own.items():
        cls.__members__[name].__dict__.update(values)


def _has_hooks(cls: type) -> bool:
    """Return whether creating this class runs code from outside the standard library."""
    hooks = [base for base in cls.__mro__[1:] if "__init_subclass__" in vars(base)]
    makers = [type(cls), *hooks]
    return any(one.__module__ not in sys.stdlib_module_names for one in makers)


def make_class(make: Any, arguments: Any) -> Any:
    """Create a class like cloudpickle; skip hooks that need keywords, which are not known here."""
    try:
        return make(*arguments)
    except TypeError:
        pass
    # Import names, not modules: compiled code must not depend on this file's imports, see
    # `cross_version`.
    from abc import ABCMeta
    from types import resolve_bases

    from cloudpickle.cloudpickle import _lookup_class_or_track

    meta, name, bases, kwargs, tracker, _ = arguments
    resolved = resolve_bases(bases)
    namespace = dict(kwargs)
    if resolved is not bases:
        namespace["__orig_bases__"] = bases
    new = ABCMeta.__new__ if issubclass(meta, ABCMeta) else type.__new__
    # `type.__new__` calls the hook of the first base, which is replaced meanwhile.
    first = resolved[0] if resolved else object
    before = vars(first).get("__init_subclass__")
    hushed = first is not object
    try:
        type.__setattr__(first, "__init_subclass__", classmethod(lambda _, **__: None))
    except TypeError:
        hushed = False  # a builtin type, which has no such hook
    try:
        made = new(meta, name, resolved, namespace)
    finally:
        if hushed and before is None:
            type.__delattr__(first, "__init_subclass__")
        elif hushed:
            type.__setattr__(first, "__init_subclass__", before)
    return _lookup_class_or_track(tracker, made)


#: Functions that are pickled with a class, because the reader has no flashpool.
ALONG = (make_class, fill_enum)
