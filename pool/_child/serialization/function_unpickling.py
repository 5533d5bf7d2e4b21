"""Unpickles functions that were pickled by value, without importing cloudpickle.

cloudpickle pickles a function as its parts, with calls of a few small functions of cloudpickle that
rebuild it. To load the pickle, a worker would have to import cloudpickle: that takes 20 ms; and if
a zygote imported it, every fork would take half as long again. So this module has its own versions
of these few functions, and uses them where a pickle names cloudpickle's. Other names (above all
cloudpickle's functions for classes) import cloudpickle.

The functions accept pickles of cloudpickle 3 (`cloudpickle.cloudpickle._make_function` and
others): that is the program's version, which comes with this package, not the environment's.

In a worker (`main` is set), functions and classes of the program's ``__main__`` move to the
worker's ``__main__``, which is otherwise empty, so that the worker and its forks find them there by
name. The program's file never runs.
"""

from __future__ import annotations

import builtins
import sys
import types
from _pickle import Unpickler, loads
from io import BytesIO

from .by_value.known_classes import ClassKeeper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CellType, CodeType, FunctionType, ModuleType
    from typing import Any

_CLOUDPICKLE = "cloudpickle.cloudpickle"
_NAMED = _CLOUDPICKLE.encode()
#: A name that occurs in every pickle that contains a class.
_FILLS = b"_class_setstate"
_NO_VALUE = object()

#: The variables of this process's ``__main__``, if it stands in for the program's.
main: dict[str, Any] | None = None


def load(data: memoryview) -> Any:
    """Unpickle a function, or another callable."""
    pickled = bytes(data)
    if _NAMED not in pickled:
        return loads(pickled)
    return (_Loader if _FILLS in pickled else _Functions)(BytesIO(pickled)).load()


def _make_function(
    code: CodeType,
    namespace: dict[str, Any],
    name: str,
    defaults: tuple[Any, ...] | None,
    closure: tuple[CellType, ...] | None,
) -> FunctionType:
    if main is not None and namespace.get("__name__") == "__main__":
        main.update(namespace)
        namespace = main
    namespace["__builtins__"] = builtins.__dict__
    return types.FunctionType(code, namespace, name, defaults, closure)


def _function_setstate(
    function: FunctionType, state: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    """Set attributes that may refer to the function, and so could not be passed at creation."""
    attributes, slots = state
    function.__dict__.update(attributes)
    function.__globals__.update(slots.pop("__globals__"))
    function.__globals__["__builtins__"] = builtins.__dict__
    for cell, filled in zip(
        function.__closure__ or (), slots.pop("__closure__") or (), strict=True
    ):
        try:
            cell.cell_contents = filled.cell_contents
        except ValueError:
            pass  # the original cell was empty, too
    del slots["_cloudpickle_submodules"]  # unpickling has imported them
    for name, value in slots.items():
        setattr(function, name, value)
    if main is function.__globals__:
        settle(function)


def settle(one: Any) -> None:
    """Bind a function or class of ``__main__`` to its name there, unless the name is taken."""
    name = one.__qualname__
    if main is not None and one.__module__ == "__main__" and name.isidentifier():
        main.setdefault(name, one)


def _make_cell(value: object = _NO_VALUE) -> CellType:
    return types.CellType() if value is _NO_VALUE else types.CellType(value)


def _builtin_type(name: str) -> Any:
    return getattr(types, name)


def _subimport(name: str) -> ModuleType:
    __import__(name)
    return sys.modules[name]


_OURS: dict[str, Any] = {
    "_make_function": _make_function,
    "_function_setstate": _function_setstate,
    "_make_cell": _make_cell,
    "_make_empty_cell": _make_cell,
    "_builtin_type": _builtin_type,
    "subimport": _subimport,
}


class _OursFirst:
    """Uses this module's functions where a pickle names cloudpickle's."""

    def find_class(self, module: str, name: str) -> Any:
        """See `pickle.Unpickler`: called for each name in a pickle."""
        if (
            module == _CLOUDPICKLE
            and name in _OURS
            and (main is not None or module not in sys.modules)
        ):
            return _OURS[name]
        return super().find_class(module, name)  # type: ignore[misc]


class _Functions(_OursFirst, Unpickler):
    """Unpickler for pickles without classes, which most calls send."""


class _Loader(_OursFirst, ClassKeeper):
    on_class = staticmethod(settle)


class FirstWins(ClassKeeper):
    """Loads functions into a ``__main__``; existing variables keep their values."""

    def __init__(self, file: BytesIO, main: dict[str, Any]) -> None:
        super().__init__(file)
        self._main = main

    def find_class(self, module: str, name: str) -> Any:
        """See `pickle.Unpickler`: called for each name in a pickle."""
        if module == _CLOUDPICKLE and name == "_make_function":
            return self._make_function
        if module == _CLOUDPICKLE and name == "_function_setstate":
            return self._set_state
        return super().find_class(module, name)

    def _make_function(
        self, code: CodeType, namespace: dict[str, Any], *parts: Any
    ) -> FunctionType:
        if namespace.get("__name__") == "__main__":
            for name, value in namespace.items():
                self._main.setdefault(name, value)
            namespace = self._main
        return _make_function(code, namespace, *parts)

    def _set_state(self, function: FunctionType, state: Any) -> None:
        _, slots = state
        there = function.__globals__
        names = slots["__globals__"]
        slots["__globals__"] = {name: names[name] for name in names if name not in there}
        _function_setstate(function, state)
