"""Preloads modules in a zygote: those whose imports calls may share.

names --plan--> modules to skip, what imports read, where drawn values are
      --import--> compare the process --> `randomness.Held`, to renew for each worker
"""

from __future__ import annotations

import importlib
import sys

from .. import forking
from ..forking import NotSafe
from ..renewal import randomness, surroundings
from ..renewal.deferred_starts import DeferredStarts
from ..wire import LOADING, PACKET_LIMIT, PRELOADED, SKIPPED
from . import planner, process_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from ..renewal import drawn_values

#: Most bytes of names in one message.
_PART = PACKET_LIMIT // 8
#: Most characters of a reason.
_WHY = 500


def preload(
    names: list[str], varying: list[str], tell: Callable[..., None]
) -> tuple[randomness.Held | None, frozenset[str]]:
    """Import the modules that may be preloaded, and report about all.

    Returns the values that workers must renew, and the kinds of surroundings that imports read.

    Raises:
        NotSafe: the process cannot fork afterwards, for a reason that no scout met.
    """
    plan = planner.plan(names, varying, lambda name: tell(LOADING, module=name))
    skipped = plan.skipped
    before = process_state.ProcessState()
    had_random = "random" in sys.modules
    with randomness.Makers() as makers, DeferredStarts() as starts, forking.hooks_deferred():
        for name in plan.order:
            tell(LOADING, module=name)
            try:
                importlib.import_module(name)
            except BaseException as error:
                skipped[name] = f"{type(error).__name__}: {error}"[:_WHY]
    _tell_skipped(skipped, tell)
    why_not = process_state.difference(before)
    if why_not is not None:
        raise NotSafe("", why_not)
    kinds = _tell_reads(plan, tell)
    if len(skipped) == len(names):
        return None, surroundings.WATCHED
    # If `random` was imported before, its fork hook does that.
    seeds_random = not had_random and "random" in sys.modules
    # No import is to blame for failures from here on.
    tell(LOADING, module="")
    generators = makers.generators()
    if odd := {one.maker for one in generators if one.drawn is None}:
        raise NotSafe(min(odd), "it gives a random generator another state")
    held = randomness.Held(
        generators, _places(plan), seeds_random=seeds_random, starts=starts.calls
    )
    return held, kinds


def _places(plan: planner.Plan) -> list[drawn_values.Place]:
    if not plan.places:
        return []
    from ..renewal.drawn_values import Place, is_by_chance

    places = [Place(*place) for place in plan.places]
    return [place for place in places if not is_by_chance(place)]


def _tell_skipped(skipped: dict[str, str], tell: Callable[..., None]) -> None:
    by_reason: dict[str, list[str]] = {}
    for name, why in skipped.items():
        by_reason.setdefault(why, []).append(name)
    for why, names in by_reason.items():
        for part in _parts(names):
            tell(SKIPPED, modules=part, why=why)


def _tell_reads(plan: planner.Plan, tell: Callable[..., None]) -> frozenset[str]:
    """Report what imports read, with one module of each package that read it.

    A module whose import failed counts for the modules that tried to import it.
    """
    readers: dict[str, dict[str, str]] = {}
    for name, facts in plan.reads.items():
        for one in [name] if name in sys.modules else plan.users[name]:
            for what in facts:
                readers.setdefault(what, {}).setdefault(one.partition(".")[0], one)
    for what, modules in readers.items():
        for part in _parts(modules.values()):
            tell(PRELOADED, reads={what: part})
    return frozenset(readers)


def _parts(names: Any) -> Iterator[list[str]]:
    """Yield parts that fit one message each, however JSON encodes them."""
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
