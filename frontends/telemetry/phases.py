"""Computes, from a receipt, when each phase of a call began and ended."""

from __future__ import annotations

from typing import Final, NamedTuple

from flashpool.pool.calls import Outcome, Receipt

_NS: Final = 1_000_000_000
#: Phases of the environment, which precede the call's time in the pool.
_PROVISIONING: Final = ("resolve", "fetch", "build")
_IN_POOL: Final = ("queue", "start", "run", "exit")


class PhaseTimes(NamedTuple):
    """Begin and end of one phase, in nanoseconds since 1970."""

    name: str
    start: int
    end: int


def timeline(receipt: Receipt, start: int, end: int) -> list[PhaseTimes]:
    """Return the phases that took time, in order, all within the call.

    The environment's phases follow the call's start. The pool's phases precede the call's end.
    """
    found: list[PhaseTimes] = []
    at = start
    for name in _PROVISIONING:
        at = _add(found, name, getattr(receipt.provision, f"{name}_s"), at, end)
    at = max(at, end - _ns(receipt.total_s))
    for name in _IN_POOL:
        at = _add(found, name, getattr(receipt, f"{name}_s"), at, end)
    return found


def _add(found: list[PhaseTimes], name: str, seconds: float, at: int, end: int) -> int:
    over = min(at + _ns(seconds), end)
    if over > at:
        found.append(PhaseTimes(name, at, over))
    return over


def _ns(seconds: float) -> int:
    return int(seconds * _NS)


def failed_phase(outcome: Outcome, phases: list[PhaseTimes]) -> str:
    """Return the phase in which a call failed: the one its error names, else the last one."""
    if outcome.ok or not phases:
        return ""
    names = [one.name for one in phases]
    wanted = "run" if outcome.from_user else outcome.details.get("phase")
    return str(wanted) if wanted in names else names[-1]
