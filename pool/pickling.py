"""Pickles a program's functions and arguments so that another process can load them.

A worker imports what the program imports, from the same ``sys.path``. Objects that it could not
import are pickled by value: everything in ``__main__``, lambdas and closures (cloudpickle's own
rules), and also everything from a module in ``sys.modules`` that an import would not find again:
loaded from a path, made by hand, or by a test runner.
"""

from __future__ import annotations

import io
import os
import pickle
import site
import sys
import sysconfig
import types
from binascii import b2a_base64
from collections.abc import Callable
from typing import Any

from . import cross_version
from ._child.serialization import payload
from ._child.serialization.by_value.pickler import Pickler

BufferCallback = Callable[[pickle.PickleBuffer], bool]
Dumps = Callable[[Any, "BufferCallback | None"], bytes]


def dumps(value: Any, buffers: BufferCallback | None = None) -> bytes:
    """Pickle for a worker; large buffers go to the callback ``buffers``."""
    if _is_plain(value):
        return pickle.dumps(value, 5)
    file = io.BytesIO()
    try:
        Pickler(file, 5, buffers, anew=_is_code(value)).dump(value)
    except (TypeError, pickle.PicklingError) as error:
        return _dumps_by_name(value, buffers, error)
    return file.getvalue()


def _dumps_by_name(value: Any, buffers: BufferCallback | None, error: Exception) -> bytes:
    """Pickle again, now by name wherever an object belongs to a module that a worker can import.

    Raises:
        TypeError, PicklingError: the first error, with the global variable that causes it if known.
    """
    if isinstance(buffers, payload.Buffers):
        buffers.views.clear()
    file = io.BytesIO()
    pickler = Pickler(file, 5, buffers, anew=_is_code(value), by_name=True)
    try:
        pickler.dump(value)
    except Exception:  # noqa: BLE001 - the first error explains more
        if (where := _culprit(pickler)) is None:
            raise error from None
        raise type(error)(f"{error}. {where}") from error
    return file.getvalue()


def _culprit(pickler: Pickler) -> str | None:
    for function in pickler.functions:
        for name in function.__code__.co_names:
            value = function.__globals__.get(name)
            if callable(value) or isinstance(value, types.ModuleType):
                continue
            try:
                Pickler(io.BytesIO(), anew=True, by_name=True).dump(value)
            except Exception:  # noqa: BLE001 - whatever the error, the value cannot be sent
                return (
                    f"{function.__qualname__}() uses the global variable {name!r}, of type "
                    f"{type(value).__qualname__}: make it in the function, or in a module that the "
                    "call imports"
                )
    return None


def dumps_for(version: cross_version.Version) -> Dumps:
    """Return a function that pickles for a worker with this version of Python.

    The returned function raises `InvalidRequest` if a function cannot be sent to that version.
    """
    if version == cross_version.OURS:
        return dumps

    def dumps_portably(value: Any, buffers: BufferCallback | None = None) -> bytes:
        file = io.BytesIO()
        _PortablePickler(file, version, buffers, anew=_is_code(value)).dump(value)
        return file.getvalue()

    return dumps_portably


def example() -> tuple[cross_version.Version, str]:
    """Return our version of Python, and a call as base64 text with which zygotes warm up.

    The call's function travels by value.
    """
    function = payload.pack(lambda value: value, dumps)
    call, _ = payload.pack_call(function, payload.pack(((None,), {}), dumps))
    return cross_version.OURS, b2a_base64(call, newline=False).decode()


def _is_plain(value: Any) -> bool:
    """Return whether the arguments contain only scalars: the usual small call."""
    if type(value) is tuple and len(value) == 2 and not value[1] and type(value[0]) is tuple:
        return payload.PLAIN.issuperset(map(type, value[0]))
    return False


def _is_code(value: Any) -> bool:
    """Return whether an object is to be called, and is not an argument.

    Locks in such an object then belong to the worker.
    """
    return callable(value)


class _PortablePickler(Pickler):
    """Sends source instead of bytecode."""

    def __init__(
        self,
        file: io.BytesIO,
        version: cross_version.Version,
        buffers: BufferCallback | None,
        *,
        anew: bool,
    ) -> None:
        super().__init__(file, 5, buffers, anew=anew)
        self._version = version

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, types.CodeType):
            return cross_version.reduce_code(obj, self._version)
        return super().reducer_override(obj)


def program_path() -> tuple[str, ...]:
    """Return the entries that a worker's ``sys.path`` needs for the program's own modules.

    They go in front. The standard library and site-packages stay out: the worker's interpreter has
    its own, and entries in front would change which module shadows which.
    """
    own = {os.path.realpath(path) for path in _interpreter_path()}
    entries = map(os.path.abspath, sys.path)
    return tuple(dict.fromkeys(entry for entry in entries if os.path.realpath(entry) not in own))


def _interpreter_path() -> set[str]:
    paths = sysconfig.get_paths()
    standard = paths["stdlib"]
    names = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    return {
        standard,
        paths["platstdlib"],
        os.path.join(standard, "lib-dynload"),
        os.path.join(os.path.dirname(standard), names),
        os.path.join(sys.base_prefix, "lib", names),
        paths["purelib"],
        paths["platlib"],
        *site.getsitepackages(),
    }
