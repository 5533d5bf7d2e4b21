"""Pickles a program's functions and arguments so that another process can load them.

A worker imports what the program imports, from the same ``sys.path``. What it could not
import goes by value: all of ``__main__``, lambdas and closures (cloudpickle's own
rules), and beyond those rules everything from a module that is in ``sys.modules`` but
that no search would find again: loaded from a path, made by hand, or by a test runner.
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
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from typing import Any

import cloudpickle

from . import cross_version
from ._child.serialization import payload

BufferCallback = Callable[[pickle.PickleBuffer], bool]
Dumps = Callable[[Any, "BufferCallback | None"], bytes]

#: Whether a module of this name would be found by a fresh process.
_findable: dict[str, bool] = {"__main__": True, "builtins": True}


def dumps(value: Any, buffers: BufferCallback | None = None) -> bytes:
    """Pickle for a worker; large buffers go to ``buffers``."""
    if _is_plain(value):
        return pickle.dumps(value, 5)
    file = io.BytesIO()
    _Pickler(file, protocol=5, buffer_callback=buffers).dump(value)
    return file.getvalue()


def dumps_for(version: cross_version.Version) -> Dumps:
    """The same for a worker whose Python is of that version.

    Raises (when it is called):
        InvalidRequest: a function cannot go there.
    """
    if version == cross_version.OURS:
        return dumps

    def dumps_portably(value: Any, buffers: BufferCallback | None = None) -> bytes:
        file = io.BytesIO()
        _PortablePickler(file, version, buffers).dump(value)
        return file.getvalue()

    return dumps_portably


def example() -> tuple[cross_version.Version, str]:
    """A call of a function that travels by value, as base64 text, and the Python it is for.

    For zygotes, to get used to what they will mostly be sent.
    """
    function = payload.pack(lambda value: value, dumps)
    call, _ = payload.pack_call(function, payload.pack(((None,), {}), dumps))
    return cross_version.OURS, b2a_base64(call, newline=False).decode()


def _is_plain(value: Any) -> bool:
    """Whether it is arguments that hold nothing but scalars: the common small call."""
    if type(value) is tuple and len(value) == 2 and not value[1] and type(value[0]) is tuple:
        return payload.PLAIN.issuperset(map(type, value[0]))
    return False


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's, told about modules that cannot be imported again."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, (types.FunctionType, type)):
            _take_by_value_if_lost(obj.__module__)
        return super().reducer_override(obj)


class _PortablePickler(_Pickler):
    """Sends source in place of bytecode."""

    def __init__(
        self, file: io.BytesIO, version: cross_version.Version, buffers: BufferCallback | None
    ) -> None:
        super().__init__(file, protocol=5, buffer_callback=buffers)
        self._version = version

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, types.CodeType):
            return cross_version.reduce_code(obj, self._version)
        return super().reducer_override(obj)


def _take_by_value_if_lost(name: str | None) -> None:
    if name is None or _findable.get(name, False):
        return
    module = sys.modules.get(name)
    if name in _findable or module is None:
        return
    _findable[name] = found = _can_be_found(name, getattr(module, "__file__", None))
    if not found:
        cloudpickle.register_pickle_by_value(module)


def _can_be_found(name: str, file: str | None) -> bool:
    """Search anew, as if the module were not loaded; another file of that name does not count."""
    path: Sequence[str] | None = None
    spec: ModuleSpec | None = None
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        spec = _search(".".join(parts[:count]), path)
        if spec is None:
            return False
        path = spec.submodule_search_locations
        if path is None and count < len(parts):
            # Not a package, so its parent made the module by other means (as os.path is).
            return True
    return spec is not None and _is_same_file(spec.origin, file)


def _search(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, path)
        except Exception:  # noqa: BLE001, S112 - a finder of the program's; the next one may know
            continue
        if spec is not None:
            return spec
    return None


def _is_same_file(origin: str | None, file: str | None) -> bool:
    if file is None or origin is None or not os.path.isabs(origin):
        return True
    return (
        os.path.splitext(os.path.realpath(origin))[0] == os.path.splitext(os.path.realpath(file))[0]
    )


def program_path() -> tuple[str, ...]:
    """What a worker's ``sys.path`` needs in front to import the program's own modules.

    The standard library and site-packages stay out: the worker's interpreter brings
    them, and in front they would change what shadows what.
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
