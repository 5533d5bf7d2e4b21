"""Determines whether a call left anything that Python handles when a process exits.

This runs after every call, so it inspects as little as possible; `process_exit` does the work.

    threads, exit hooks, handlers of logging, finalizers of `weakref` and `multiprocessing`
                                   compares their numbers with those of the prepared process
    objects with a ``__del__``     by type: a zygote's own objects are frozen, so the collector
                                   lists only those of the call
    names of the user's modules    values whose deletion may have an effect

Types without such effects are remembered, so that a small call, whose types a rehearsal had
already, only compares two sets.
"""

from __future__ import annotations

import io
import logging
import sys
import weakref
from _thread import _count as threads_alive
from atexit import _ncallbacks as hooks_registered

# Bound here: user code may have replaced or deleted them when a call ends.
from builtins import BaseException, any, getattr, isinstance, len, list, map, type  # noqa: UP029
from gc import get_objects
from types import BuiltinFunctionType, CellType, FunctionType, GeneratorType, MethodType, ModuleType

from ..renewal import prepared
from ..serialization.live_module import BY_VALUE, NAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sized
    from typing import Any

#: Finalizers that only warn, or close what the kernel closes anyway.
_ONLY_CLOSE = frozenset(
    ("asyncio", "_asyncio", "socket", "_socket", "subprocess", "select", "ssl", "_ssl")
)
#: Files in memory or without a write buffer: no data of them is lost.
_NO_BUFFER = (io.StringIO, io.BytesIO, io.BufferedReader, io.FileIO)
#: Types that may still write when they are deallocated, although they have no ``__del__``.
_DATABASES = frozenset((("sqlite3", "Connection"),))
#: Types of values in a module whose deletion has no effect.
_PLAIN = frozenset(
    (FunctionType, ModuleType, type, str, bytes, int, float, complex, bool, type(None))
)
#: Packages whose C objects only hold memory. How deep, and how many objects, are searched.
_NOTHING_OPEN = frozenset(("builtins", *BY_VALUE, "numpy", "pandas"))
_DEPTH, _BREADTH = 2, 100
_STDLIB = f"{io.__file__.rpartition('/')[0]}/"
_MRO = type.__dict__["__mro__"].__get__
_ATTRIBUTES = type.__dict__["__dict__"].__get__
#: Exit hooks that need not run by themselves, because the objects they handle are counted here.
_COUNTED_HOOKS = frozenset(
    (
        ("logging", "shutdown"),
        ("weakref", "finalize._exitfunc"),
        ("multiprocessing.util", "_exit_function"),
    )
)

#: Types whose objects need nothing at exit: those of every call, and those found since.
_harmless: set[type[Any]] = {
    *(FunctionType, BuiltinFunctionType, MethodType, CellType, ModuleType, type, property),
    *(dict, list, tuple, set, frozenset, map, filter, zip, staticmethod, classmethod),
}
#: Most objects that the collector lists after a call that keeps nothing, by whether it was pickled,
#: plus two: an open file with its buffers would be three. And the number of names in both modules
#: that may contain the call's function, with one function in one of them.
FEW = {False: 13, True: 8}
_NAMES = 13
_threads: Callable[[], int] = threads_alive
_registered: Callable[[], int] = hooks_registered
_objects: Callable[[], list[Any]] = get_objects
#: The state before any call: number of exit hooks, and lengths of the counted collections.
_hooks = 0
_counted: list[tuple[Callable[[], int], int]] = []
#: Whether preloaded modules have registered exit hooks, which every process must run.
_inherited = False


def look_around() -> None:
    """Record the state of the prepared process before any call.

    Objects that every call needs are created here, side by side: a worker pays for each page of an
    object that it accesses, and calling a bound method does not write to the method's object.
    """
    global _hooks, _counted, _inherited, _threads, _registered, _objects
    functions: list[Any] = [threads_alive, hooks_registered, get_objects]
    _threads, _registered, _objects = (one.__call__ for one in functions)
    _hooks = hooks_registered()
    _inherited = any(_name_of(one) not in _COUNTED_HOOKS for one in prepared.hooks)
    found: list[Sized] = [vars(logging)["_handlerList"], vars(weakref.finalize)["_registry"]]
    if (util := sys.modules.get("multiprocessing.util")) is not None:
        process = sys.modules["multiprocessing.process"]
        found += [vars(util)["_finalizer_registry"], vars(process)["_children"]]
    _counted = [(one.__len__, len(one)) for one in found]


def _name_of(hook: Any) -> tuple[str, str]:
    return getattr(hook, "__module__", ""), getattr(hook, "__qualname__", "")


def any_left(known: int, few: int) -> bool:
    """Return whether the exit of this process has anything to do.

    The process had ``known`` modules before the call. With at most ``few`` objects (`FEW`), and
    only the usual names in the function's module, nothing can be left: so small calls do not
    inspect types, each of which is on another page.
    """
    try:
        if may_wait():
            return True
        modules = sys.modules
        is_small = len(modules) == known and len(_objects()) <= few
        if is_small and len(modules["__main__"].__dict__) + len(modules[NAME].__dict__) <= _NAMES:
            return False
        kinds = {*map(type, get_objects())} - _harmless
        if kinds and (kinds := _finalized(kinds)) and finalizable(kinds):
            return True
        return any(names_to_clear(module) for module in users_modules(known))
    except BaseException:
        # User code left an object that cannot even be inspected.
        return True


def may_wait() -> bool:
    """Return whether an exit may have to wait for anything: threads or hooks."""
    if _inherited or _threads() or _registered() != _hooks:
        return True
    for count, length in _counted:  # noqa: SIM110 - a generator is another object in every call
        if count() != length:
            return True
    return False


def _finalized(kinds: set[type[Any]]) -> set[type[Any]]:
    """Return types whose objects have an effect when they are deleted; remember the others."""
    found = set()
    for kind in kinds:
        if _does_something(kind):
            found.add(kind)
        else:
            _harmless.add(kind)
    return found


def _does_something(kind: type[Any]) -> bool:
    bases = _MRO(kind)
    if any((one.__module__, one.__name__) in _DATABASES for one in bases):
        return True
    owner = next((one for one in bases if "__del__" in _ATTRIBUTES(one)), None)
    if owner is None or kind in _NO_BUFFER:
        return False
    if owner.__module__ in ("_io", "builtins"):
        return issubclass(kind, io.IOBase) or kind is GeneratorType
    return str(owner.__module__).partition(".")[0] not in _ONLY_CLOSE


def finalizable(kinds: set[type[Any]] | None = None) -> list[Any]:
    """Return the call's objects whose deletion still has an effect."""
    if kinds is None:
        kinds = _finalized({*map(type, get_objects())} - _harmless)
    return [one for one in get_objects() if type(one) in kinds and _is_pending(one)]


def _is_pending(one: Any) -> bool:
    try:
        if isinstance(one, io.IOBase):
            return not one.closed and one.writable()
        if type(one) is GeneratorType:
            # A suspended generator may have a ``finally``.
            return bool(getattr(one, "gi_suspended", one.gi_frame and one.gi_frame.f_lasti >= 0))
    except BaseException:
        return False  # the object's own code fails, so the object is unusable
    return True


def users_modules(known: int) -> list[ModuleType]:
    """Return the modules of the call's own code among those that were imported since."""
    names = list(sys.modules)[known:] if len(sys.modules) > known else []
    found = [sys.modules.get(name) for name in (*BY_VALUE, *names)]
    return [one for one in found if isinstance(one, ModuleType) and _is_users(one)]


def _is_users(module: ModuleType) -> bool:
    """Return whether a module belongs neither to Python nor to an installed package."""
    if module.__name__ in BY_VALUE:
        return True
    path = module.__dict__.get("__file__")
    if not isinstance(path, str) or path.startswith(_STDLIB):
        return False
    return not ("/site-packages/" in path or "/dist-packages/" in path)


def names_to_clear(module: ModuleType) -> list[str]:
    """Return names whose values may have an effect when deleted, though without ``__del__``."""
    return [
        name
        for name, value in module.__dict__.items()
        if type(value) not in _PLAIN and name[:2] != "__" and _may_close(value, _DEPTH)
    ]


def _may_close(value: Any, depth: int) -> bool:
    """Return whether a value is or holds an unknown C object, such as a video or a database."""
    kind = type(value)
    if kind in _PLAIN or isinstance(value, type):
        return False
    if isinstance(value, dict):
        parts = list(value.values())
    elif kind in (list, tuple, set, frozenset):
        parts = list(value)
    elif _is_of_c(kind):
        return True
    else:
        parts = list(getattr(value, "__dict__", {}).values())
    return depth > 0 and any(_may_close(part, depth - 1) for part in parts[:_BREADTH])


def _is_of_c(kind: type[Any]) -> bool:
    if any((one.__module__, one.__name__) in _DATABASES for one in _MRO(kind)):
        return True
    package = str(kind.__module__).partition(".")[0]
    if package in _NOTHING_OPEN or package in sys.stdlib_module_names:
        return False
    # A class written in Python, or a base of it, has one of these attributes.
    marks = ("__dict__", "__weakref__", "__slots__")
    return not any(mark in _ATTRIBUTES(one) for one in _MRO(kind) for mark in marks)
