"""Objects whose references a fork does not count, so that it need not copy their pages.

A worker copies each memory page when it first writes to it, and counting the references to a
function, a string or a class is a write. From CPython 3.12 on, an object may be immortal (PEP 683):
its count is a constant that is never written. The interpreter makes None immortal. Objects that a
zygote holds when it forks live as long as its workers, so they may be immortal, too. This saves
about a quarter of the pages that a worker would copy.

Two kinds of objects are left alone: objects of preloaded packages (which may be many, and most
calls use few), and objects whose deletion has an effect.
"""

from __future__ import annotations

import ctypes
import gc
from types import CodeType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Final

#: By type: whether its objects have a finalizer.
_finalised: dict[type, bool] = {CodeType: False}

#: Accesses the half of an object's reference count that marks it as immortal.
_count_at = ctypes.c_uint32.from_address

#: Number of objects whose references are queried at once. Memory allocated for that stays mapped
#: after it is freed, and every fork would pay for its pages.
_PART: Final = 500


def make(objects: list[Any]) -> None:
    """Make these objects immortal, and the objects that they refer to directly."""
    immortal = _count_at(id(None)).value
    for first in range(0, len(objects), _PART):
        part = objects[first : first + _PART]
        _make(part, immortal)
        _make(gc.get_referents(*part), immortal)


def _make(objects: Iterable[Any], immortal: int) -> None:
    for one in objects:
        kind = type(one)
        if kind is CodeType:
            consts, names = one.co_consts, one.co_names
            _make((consts, *consts, names, *names, one.co_name), immortal)
        elif kind not in _finalised:
            _finalised[kind] = hasattr(kind, "__del__")
        if not _finalised[kind]:
            _count_at(id(one)).value = immortal
