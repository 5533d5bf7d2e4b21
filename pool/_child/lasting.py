"""Objects whose references a fork does not count: so it need not copy the pages they lie on.

A worker copies each page of memory that it is the first to write to, and counting the
references to a function, a string or a class is a write. From CPython 3.12 on an object may
be immortal (PEP 683): its count is a constant that is never written. The interpreter makes
None so; what a zygote holds by the time it forks lives as long as its workers, and may as
well be. It saves a worker about every fourth page that it would copy.

Left alone: what packages that were preloaded brought along (it may be much, and most calls
use little of it), and objects that have something to do when they die.
"""

from __future__ import annotations

import ctypes
import gc
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType
    from typing import Any

#: The half of an object's count in which immortality shows.
_count_at = ctypes.c_uint32.from_address


def is_known() -> bool:
    """Whether references are counted here as `make` thinks they are.

    Builds without the global lock count in two places, and 32-bit ones have another constant.
    """
    return (
        sys.implementation.name == "cpython"
        and (3, 12) <= sys.version_info[:2] <= (3, 14)
        and sys.maxsize > 2**32
        and "t" not in sys.abiflags
    )


def here() -> list[Any]:
    """What there is so far, that the collector knows of; nothing where nothing can be done."""
    return gc.get_objects() if is_known() else []


def make(objects: list[Any]) -> None:
    """Make these immortal, and what they refer to directly."""
    if not objects:
        return
    code = type(make.__code__)
    found = {id(one): one for one in objects}
    parts = gc.get_referents(*objects)
    codes: list[CodeType] = [one for one in parts if type(one) is code]
    for one in codes:  # grows: functions within functions
        consts = one.co_consts
        parts += (one, consts, *consts, one.co_names, *one.co_names, one.co_name)
        codes += [const for const in consts if type(const) is code]
    found.update((id(one), one) for one in parts)
    immortal = _count_at(id(None)).value
    for address, one in found.items():
        if not hasattr(type(one), "__del__"):
            _count_at(address).value = immortal
