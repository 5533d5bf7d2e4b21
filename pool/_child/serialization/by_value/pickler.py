"""cloudpickle's pickler, with fixes for objects that it refuses or does not preserve.

    pickled by name  `functools.lru_cache`, `typing.NewType`, sentinels  -> by their parts
    recreated        locks, `threading.local`, thread pools              -> only if code holds them
    weak             `weakref.ref` and its containers, dispatch caches   -> by their contents
    classes          see `class_reduction`

The reader has cloudpickle, but not flashpool: functions that rebuild an object are in the standard
library, or are pickled by value. This module imports cloudpickle, so it is imported only when a
value needs it.

A lock in an argument or a result is refused, as in pickle, because its sender wants to share it. A
lock in a global variable of a function is recreated: each process has its own, as if it had
imported the program.
"""

from __future__ import annotations

import copyreg
import functools
import sys
import types

import cloudpickle

from ..live_module import BY_VALUE
from . import class_reduction, runtime_objects
from .importable import is_importable, place_of
from .lost_modules import take_by_value_if_lost

TYPE_CHECKING = False
if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterable
    from typing import Any

    Reduced = Any
    Reducer = Callable[["Pickler", Any], Reduced]

__all__ = ["Pickler"]

#: Modules whose objects may hold locks: their attributes are searched, too.
_HOLDERS = frozenset(("threading", "queue", "functools"))
#: Position of the file name among the arguments of `types.CodeType`.
_FILENAME = 10

#: How to reduce objects of a type; None: as cloudpickle does.
_known: dict[type, Reducer | None] = {}


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles by value what the reader cannot import.

    ``anew``: recreate locks and similar objects wherever they are. ``by_name``: pickle values of
    functions' global variables by name, if an importable module has them, too.
    """

    def __init__(
        self,
        file: io.BytesIO,
        protocol: int = 5,
        buffer_callback: Any = None,
        *,
        anew: bool = False,
        by_name: bool = False,
    ) -> None:
        super().__init__(file, protocol=protocol, buffer_callback=buffer_callback)
        self.anew = anew
        self.by_name = by_name
        #: With ``by_name``: functions that were pickled by value.
        self.functions: list[types.FunctionType] = []
        self._places: dict[int, tuple[types.ModuleType, str]] = {}
        #: Ids of objects that code holds: in a global variable, a closure or a class.
        self._held: set[int] = set()

    def reducer_override(self, obj: Any) -> Any:
        """See `pickle.Pickler`; NotImplemented means "as pickle does"."""
        if self._places and (place := self._places.get(id(obj))) is not None:
            return getattr, place
        kind = type(obj)
        try:
            reduce = _known[kind]
        except KeyError:
            reduce = _known[kind] = _reducer_of(kind)
        if reduce is not None and (reduced := reduce(self, obj)) is not NotImplemented:
            return reduced
        if isinstance(obj, type):
            take_by_value_if_lost(obj.__module__)
            reduced = class_reduction.reduce(obj, super().reducer_override(obj))
            if class_reduction.is_by_value(reduced):
                self.hold(vars(obj).values())
            return reduced
        return super().reducer_override(obj)

    def _dynamic_function_reduce(self, func: types.FunctionType) -> Any:
        reduced = super()._dynamic_function_reduce(func)
        slots = reduced[2][1]
        self.hold(slots["__globals__"].values())
        if self.by_name:
            self.functions.append(func)
            for value in slots["__globals__"].values():
                if not callable(value) and (place := place_of(value)) is not None:
                    self._places[id(value)] = place
        self.hold(map(_content, slots["__closure__"] or ()))
        slots["_cloudpickle_submodules"] += _named_submodules(func.__code__, slots["__globals__"])
        return reduced

    def hold(self, values: Iterable[object]) -> None:
        """Record that code holds these objects."""
        for value in values:
            self._held.add(id(value))
            if type(value).__module__ in _HOLDERS:
                self.hold(list(getattr(value, "__dict__", {}).values()))

    def may_make_anew(self, obj: object) -> bool:
        """Return whether the reader may recreate this object."""
        return self.anew or id(obj) in self._held

    def by_value(self, func: types.FunctionType) -> Any:
        """Reduce a function of this package by value, because readers cannot import it."""
        return super()._dynamic_function_reduce(func)


def _named_submodules(code: types.CodeType, names: dict[str, Any]) -> list[types.ModuleType]:
    """Return submodules that the code gets by ``getattr(package, "name")``, which cloudpickle does
    not find.
    """
    packages = [one for one in names.values() if isinstance(one, types.ModuleType)]
    texts = [one for one in code.co_consts if isinstance(one, str) and one.isidentifier()]
    found = (sys.modules.get(f"{one.__name__}.{text}") for one in packages for text in texts)
    return [module for module in found if module is not None]


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        return None  # the cell is empty


# -- Reducers, by type --------------------------------------------------------------------


def _reducer_of(kind: type) -> Reducer | None:
    found = _REDUCERS.get(f"{kind.__module__}.{kind.__qualname__}")
    if found is not None:
        return found
    for base in (property, classmethod, staticmethod):
        if issubclass(kind, base) and kind is not base:
            return functools.partial(_reduce_descriptor, base)
    own = any(
        "__reduce__" in vars(one) or "__reduce_ex__" in vars(one) for one in kind.__mro__[:-1]
    )
    return _reduce_named if own and kind.__module__ in BY_VALUE else None


def _reduce_function(pickler: Pickler, func: Any) -> Reduced:
    if func in _OURS:
        return pickler.by_value(func)
    take_by_value_if_lost(func.__module__)
    if func.__code__ is _dispatcher_code() and not is_importable(func):
        return _reduce_dispatcher(func)
    return NotImplemented


def _reduce_code(_: Pickler, code: types.CodeType) -> Reduced:
    """Keep the file name, which some versions of cloudpickle replace by ``<dynamic-code>``."""
    make, arguments = cloudpickle.Pickler.dispatch_table[types.CodeType](code)
    before, after = arguments[:_FILENAME], arguments[_FILENAME + 1 :]
    return make, (*before, code.co_filename, *after)


def _reduce_cached(_: Pickler, cached: Any) -> Reduced:
    if is_importable(cached):
        return NotImplemented
    # A function may refer to its cached form by name. pickle's memo handles that: the cached
    # function is written once.
    limits = getattr(cached, "cache_parameters", cached.cache_info)()
    maxsize = limits["maxsize"] if isinstance(limits, dict) else limits.maxsize
    typed = isinstance(limits, dict) and limits["typed"]
    makers: Any = functools
    parts = (cached.__wrapped__, maxsize, typed, makers._CacheInfo)
    return makers._lru_cache_wrapper, parts, vars(cached)


def _reduce_cached_property(_: Pickler, cached: Any) -> Reduced:
    # Up to Python 3.11 the object has a lock, which the constructor creates.
    state = {name: value for name, value in vars(cached).items() if name != "lock"}
    return functools.cached_property, (cached.func,), state


@functools.cache
def _dispatcher_code() -> types.CodeType:
    return functools.singledispatch(len).__code__  # type: ignore[attr-defined,no-any-return]


def _reduce_dispatcher(func: Any) -> Reduced:
    own = ("register", "dispatch", "registry", "_clear_cache")
    attributes = {name: value for name, value in vars(func).items() if name not in own}
    names = ("__name__", "__qualname__", "__module__", "__doc__")
    named = {name: getattr(func, name) for name in names}
    state = list(func.registry.items()), attributes, named
    return _new_dispatcher, (), state, None, None, _fill_dispatcher


def _new_dispatcher() -> Any:
    from functools import singledispatch

    return singledispatch(lambda *_: None)


def _fill_dispatcher(dispatcher: Any, state: Any) -> None:
    implementations, attributes, named = state
    for kind, function in implementations:
        dispatcher.register(kind, function)
    dispatcher.__dict__.update(attributes)
    for name, value in named.items():
        setattr(dispatcher, name, value)
    for cell, name in zip(dispatcher.__closure__, dispatcher.__code__.co_freevars):  # noqa: B905
        if name == "funcname":
            cell.cell_contents = named["__name__"]


def _reduce_descriptor(base: Any, _: Pickler, obj: Any) -> Reduced:
    """Reduce an object of a class derived from ``base``, without calling its constructor."""
    parts: tuple[Any, ...] = (obj.__func__,) if base is not property else ()
    if base is property:
        parts = (obj.fget, obj.fset, obj.fdel)
    attributes = dict(vars(obj))
    state = base, parts, attributes
    return copyreg.__newobj__, (type(obj),), state, None, None, _fill_descriptor  # type: ignore[attr-defined]


def _fill_descriptor(descriptor: Any, state: Any) -> None:
    base, parts, attributes = state
    base.__init__(descriptor, *parts)
    descriptor.__dict__.update(attributes)


def _reduce_named(_: Pickler, obj: Any) -> Reduced:
    """Reduce an object of the program whose class reduces it to a global name."""
    reduced = obj.__reduce_ex__(5)
    if not isinstance(reduced, str):
        return reduced
    return copyreg.__newobj__, (type(obj),), getattr(obj, "__dict__", None) or None  # type: ignore[attr-defined]


def _reduce_new_type(_: Pickler, obj: Any) -> Reduced:
    if is_importable(obj):
        return NotImplemented
    return type(obj), (obj.__qualname__, obj.__supertype__), vars(obj)


def _type(obj: object) -> Callable[..., Any]:
    return type(obj)


def _reduce_type_parameter(_: Pickler, obj: Any) -> Reduced:
    module = obj.__module__
    if module not in BY_VALUE and getattr(sys.modules.get(module), obj.__name__, None) is obj:
        return NotImplemented
    options = {}
    if hasattr(obj, "__bound__"):
        options = {"bound": obj.__bound__, "covariant": obj.__covariant__}
        options["contravariant"] = obj.__contravariant__
    return functools.partial(_type(obj), obj.__name__, **options), ()


def _reduce_type_alias(_: Pickler, obj: Any) -> Reduced:
    if obj.__module__ not in BY_VALUE:
        return NotImplemented
    make = functools.partial(_type(obj), obj.__name__, type_params=obj.__type_params__)
    return make, (obj.__value__,)


def _reduce_variable(_: Pickler, variable: Any) -> Reduced:
    """Reduce a context variable, with its value in this context."""
    if (place := place_of(variable)) is not None:
        return getattr, place
    import contextvars

    make = functools.partial(_type(variable), variable.name)
    try:
        default = contextvars.Context().run(variable.get)
        make = functools.partial(make, default=default)
        if variable.get() is default:
            return make, ()
    except LookupError:
        pass
    try:
        return make, (), (variable.get(),), None, None, _set_variable
    except LookupError:
        return make, ()


def _set_variable(variable: Any, state: Any) -> None:
    variable.set(*state)


def _reduce_sentinel(_: Pickler, obj: object) -> Reduced:
    """Reduce ``object()``, or a sentinel of `dataclasses`, which are compared by identity."""
    place = place_of(obj)
    return NotImplemented if place is None else (getattr, place)


def _reduce_manager(_: Pickler, manager: Any) -> Reduced:
    """Reduce a `@contextmanager` object so that it is recreated, if it has not been entered."""
    if "func" not in vars(manager):
        return NotImplemented
    return type(manager), (manager.func, manager.args, manager.kwds)


# -- Recreated objects ----------------------------------------------------------------------


def _anew(make: Callable[[Any], Reduced]) -> Reducer:
    def reduce(pickler: Pickler, obj: Any) -> Reduced:
        if (place := place_of(obj)) is not None:
            return getattr, place
        return make(obj) if pickler.may_make_anew(obj) else NotImplemented

    return reduce


_REDUCERS: dict[str, Reducer] = {
    "builtins.function": _reduce_function,
    "builtins.code": _reduce_code,
    "functools._lru_cache_wrapper": _reduce_cached,
    "functools.cached_property": _reduce_cached_property,
    "typing.NewType": _reduce_new_type,
    "typing.ParamSpec": _reduce_type_parameter,
    "typing.TypeVarTuple": _reduce_type_parameter,
    "typing.TypeAliasType": _reduce_type_alias,
    "_contextvars.ContextVar": _reduce_variable,
    "builtins.object": _reduce_sentinel,
    "dataclasses._MISSING_TYPE": _reduce_sentinel,
    "dataclasses._KW_ONLY_TYPE": _reduce_sentinel,
    "dataclasses._HAS_DEFAULT_FACTORY_CLASS": _reduce_sentinel,
    "contextlib._GeneratorContextManager": _reduce_manager,
    "contextlib._AsyncGeneratorContextManager": _reduce_manager,
    "_struct.Struct": lambda _, obj: (type(obj), (obj.format,)),
    "random.SystemRandom": lambda _, obj: (type(obj), ()),
    "_thread.lock": _anew(lambda _: (sys.modules["_thread"].allocate_lock, ())),
    "_thread.RLock": _anew(lambda obj: (type(obj), ())),
    "_thread._local": _anew(runtime_objects.make_local),
    "_queue.SimpleQueue": _anew(lambda obj: (type(obj), ())),
    "concurrent.futures.thread.ThreadPoolExecutor": _anew(runtime_objects.make_threads),
    "weakref.ReferenceType": runtime_objects.reduce_weak,
    "weakref.WeakMethod": runtime_objects.reduce_weak_method,
    "weakref.WeakKeyDictionary": runtime_objects.reduce_weak_items,
    "weakref.WeakValueDictionary": runtime_objects.reduce_weak_items,
}
#: Functions that are pickled by value.
_OURS = frozenset(
    (
        *(_new_dispatcher, _fill_dispatcher, _fill_descriptor, _set_variable),
        *class_reduction.ALONG,
    )
)
