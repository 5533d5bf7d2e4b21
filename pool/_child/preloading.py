"""Preloads modules in a zygote: those whose import every call may share.

names --scout--> what to leave out, what imports read, where drawn values are
      --import--> compare the process --> `randomness.Held`, for workers to renew
"""

from __future__ import annotations

import importlib
import sys

from . import process_state, randomness, scout
from .preparation import NotSafe
from .wire import LOADING, PACKET_LIMIT, PRELOADED, SKIPPED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

#: Bytes of names in one message.
_PART = PACKET_LIMIT // 8
#: Characters of a reason.
_WHY = 500


def preload(
    names: list[str], varying: list[str], tell: Callable[..., None]
) -> randomness.Held | None:
    """Import those of the modules that may be preloaded, and tell about all.

    Raises:
        NotSafe: the process cannot fork afterwards, for a reason that no scout met.
    """
    findings = scout.explore(names, varying, lambda name: tell(LOADING, module=name))
    skipped = findings.rejected(names)
    before = process_state.State()
    with randomness.Makers() as makers:
        for name in scout.in_order([name for name in names if name not in skipped]):
            tell(LOADING, module=name)
            try:
                importlib.import_module(name)
            except BaseException as error:
                skipped[name] = f"{type(error).__name__}: {error}"[:_WHY]
    _tell_skipped(skipped, tell)
    why_not = process_state.difference(before)
    if why_not is not None:
        raise NotSafe("", why_not)
    _tell_reads(findings.reads, tell)
    if len(skipped) == len(names):
        return None
    return randomness.Held(makers.generators(), findings.places)


def _tell_skipped(skipped: dict[str, str], tell: Callable[..., None]) -> None:
    by_reason: dict[str, list[str]] = {}
    for name, why in skipped.items():
        by_reason.setdefault(why, []).append(name)
    for why, names in by_reason.items():
        for part in _parts(names):
            tell(SKIPPED, modules=part, why=why)


def _tell_reads(found: dict[str, dict[str, str | None]], tell: Callable[..., None]) -> None:
    reads: dict[str, str] = {}
    for name, facts in found.items():
        if name in sys.modules:
            for what in facts:
                reads.setdefault(what, name)
    for part in _parts(reads):
        tell(PRELOADED, reads={what: reads[what] for what in part})


def _parts(names: Any) -> Iterator[list[str]]:
    """As many at a time as one message holds, however JSON writes them."""
    part: list[str] = []
    size = 0
    for name in names:
        part.append(name)
        size += len(name)
        if size > _PART:
            yield part
            part, size = [], 0
    if part:
        yield part
