"""Unpickles, and leaves existing classes unchanged.

A class that was pickled by value comes back in a result, or comes again with arguments. cloudpickle
finds the existing class, and sets all its attributes again: to the values of the other process, and
to methods whose global variables are copies. Here the existing class stays unchanged: each process
keeps the changes that it made to its class.
"""

from __future__ import annotations

import sys
from _pickle import Unpickler, loads
from functools import partial
from io import BytesIO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

_NAMED = b"cloudpickle.cloudpickle"
#: Larger pickles are not searched for this name.
_SEARCHED = 1024 * 1024


def load(data: bytes | memoryview, *, buffers: Iterable[memoryview] = ()) -> Any:
    """Unpickle a value that a program or a call pickled."""
    # Without cloudpickle, this process has no class that was pickled by value.
    if "cloudpickle.cloudpickle" not in sys.modules:
        return loads(data, buffers=buffers)
    if len(data) <= _SEARCHED and _NAMED not in bytes(data):
        return loads(data, buffers=buffers)
    return ClassKeeper(BytesIO(data), buffers=buffers).load()


class ClassKeeper(Unpickler):
    """An unpickler that sets attributes only in new classes."""

    #: Called with each new class, once its attributes are set.
    on_class: Callable[[type], None] | None = None

    def __init__(self, file: BytesIO, buffers: Iterable[memoryview] = ()) -> None:
        super().__init__(file, buffers=buffers)
        self._kept: set[type] = set()

    def find_class(self, module: str, name: str) -> Any:
        """Called for each name in the pickle."""
        found = super().find_class(module, name)
        if module.startswith("cloudpickle."):
            if name in {"_make_skeleton_class", "_make_skeleton_enum"}:
                return partial(self._make, found)
            if name == "_class_setstate":
                return partial(self._fill, found)
        return found

    def _make(self, make: Callable[..., type], *arguments: Any) -> type:
        from cloudpickle.cloudpickle import _DYNAMIC_CLASS_TRACKER_BY_ID

        *_, tracker, _ = arguments
        known: type | None = _DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker)
        if known is not None:
            self._kept.add(known)
            return known
        return make(*arguments)

    def _fill(self, fill: Callable[[type, Any], Any], cls: type, state: Any) -> None:
        if cls in self._kept:
            return
        fill(cls, state)
        if self.on_class is not None:
            self.on_class(cls)
