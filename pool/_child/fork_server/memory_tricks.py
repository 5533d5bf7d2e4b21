"""Chooses the memory tricks of a zygote: `memory_layout`, `immortal_objects`, `memory_mappings`.

Memory tricks make forks cheaper and should change nothing else. But they rely on how CPython lays
out objects in memory, and on permissions of the kernel. So each can be switched off, and all are
off on a version of Python on which they were not tested, unless `UNTRIED` is set.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Final

LAYOUT: Final = "layout"
IMMORTAL: Final = "immortal"
MAPPINGS: Final = "mappings"
ALL: Final = (LAYOUT, IMMORTAL, MAPPINGS)
#: Given beside names of tricks: use them on any version of CPython.
UNTRIED: Final = "untried"

#: Minor versions on which the test suite has passed with each trick on and with each off.
TRIED: Final = ((3, 10), (3, 11), (3, 12), (3, 13))


def usable(wanted: Collection[str]) -> list[str]:
    """Return the wanted tricks that may be used in this interpreter."""
    # Free-threaded builds keep two counts per object, and have another allocator; 32-bit builds
    # have other sizes.
    ours = (
        sys.implementation.name == "cpython"
        and sys.maxsize > 2**32
        and "t" not in sys.abiflags
        and (sys.version_info[:2] in TRIED or UNTRIED in wanted)
    )
    return [one for one in ALL if ours and one in wanted and (one != IMMORTAL or _has_immortal())]


def _has_immortal() -> bool:
    """Return whether the interpreter has immortal objects (PEP 683)."""
    return sys.version_info >= (3, 12)
