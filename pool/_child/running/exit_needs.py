"""Determines whether a call left anything that Python handles when a process exits.

Asked of every call, so it looks at next to nothing; `process_exit` does what there is to do.

    threads, exit hooks, handlers of logging, finalizers of `weakref` and `multiprocessing`
                                   counted: as many as the prepared process had, or more?
    objects with a ``__del__``     by their types: a zygote's own objects are frozen, so the
                                   collector lists those of the call alone
    names of the user's modules    values that may do something when they are let go of

Types without such effects are remembered, so that a small call, whose types a rehearsal had
already, compares two sets.
"""

from __future__ import annotations

import io
import logging
import sys
import weakref
from _thread import _count as threads_alive
from atexit import _ncallbacks as hooks_registered

# Bound here: user code may have changed or deleted them when this is asked.
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
#: In memory, or without a buffer: nothing of them is lost.
_NO_BUFFER = (io.StringIO, io.BytesIO, io.BufferedReader, io.FileIO)
#: Closed by their deallocation, of which no ``__del__`` tells, with something left to write.
_DATABASES = frozenset((("sqlite3", "Connection"),))
#: Values of a module's names that need nothing when they go.
_PLAIN = frozenset(
    (FunctionType, ModuleType, type, str, bytes, int, float, complex, bool, type(None))
)
#: Packages whose C objects only hold memory; how deep, and how many objects, are searched.
_NOTHING_OPEN = frozenset(("builtins", *BY_VALUE, "numpy", "pandas"))
_DEPTH, _BREADTH = 2, 100
_STDLIB = f"{io.__file__.rpartition('/')[0]}/"
_MRO = type.__dict__["__mro__"].__get__
_ATTRIBUTES = type.__dict__["__dict__"].__get__
#: Hooks at exit that have nothing to do where what they are for is counted here as well.
_COUNTED_HOOKS = frozenset(
    (
        ("logging", "shutdown"),
        ("weakref", "finalize._exitfunc"),
        ("multiprocessing.util", "_exit_function"),
    )
)

#: Types of which no object needs anything: those of every call, and what was met since.
_harmless: set[type[Any]] = {
    *(FunctionType, BuiltinFunctionType, MethodType, CellType, ModuleType, type, property),
    *(dict, list, tuple, set, frozenset, map, filter, zip, staticmethod, classmethod),
}
#: The collector's objects of a call that holds on to nothing, as requests and as Pool bring one,
#: and two more, where an open file and what holds it are three; and the names of both modules
#: that a function may be in, with one function in one of them.
FEW = {False: 13, True: 8}
_NAMES = 13
_threads: Callable[[], int] = threads_alive
_registered: Callable[[], int] = hooks_registered
_objects: Callable[[], list[Any]] = get_objects
#: State before any call: hooks, and lengths of what is counted.
_hooks = 0
_counted: list[tuple[Callable[[], int], int]] = []
#: Whether preloaded modules have registered hooks that every process of a program would run.
_inherited = False


def look_around() -> None:
    """Record what the prepared process has before any call.

    Objects that every call needs are created here, side by side: a worker pays for each page that
    an object is on, and calling an object's method leaves that itself alone.
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

    The process had ``known`` modules before the call. With at most ``few`` further objects (`FEW`)
    and only the names of a function's module, nothing can hide: so small calls skip looking at
    types, each of which is on another page.
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
        # User code left something here that cannot even be looked at.
        return True


def may_wait() -> bool:
    """Return whether an exit may have to wait for anything: threads or hooks."""
    if _inherited or _threads() or _registered() != _hooks:
        return True
    for count, length in _counted:  # noqa: SIM110 - a generator is one object more, in every call
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
    """The call's objects that do something when they go, and have not done it yet."""
    if kinds is None:
        kinds = _finalized({*map(type, get_objects())} - _harmless)
    return [one for one in get_objects() if type(one) in kinds and _is_pending(one)]


def _is_pending(one: Any) -> bool:
    try:
        if isinstance(one, io.IOBase):
            return not one.closed and one.writable()
        if type(one) is GeneratorType:
            # Suspended: it may have a ``finally``.
            return bool(getattr(one, "gi_suspended", one.gi_frame and one.gi_frame.f_lasti >= 0))
    except BaseException:
        return False  # its own code says that it is of no use any more
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
    """Return names whose values may have an effect when deleted, beside those with a
    ``__del__``.
    """
    return [
        name
        for name, value in module.__dict__.items()
        if type(value) not in _PLAIN and name[:2] != "__" and _may_close(value, _DEPTH)
    ]


def _may_close(value: Any, depth: int) -> bool:
    """Return whether a value is, or holds, an unknown C object: a video, a database."""
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
    # A class of Python's has one of these, or a base that has.
    marks = ("__dict__", "__weakref__", "__slots__")
    return not any(mark in _ATTRIBUTES(one) for one in _MRO(kind) for mark in marks)
