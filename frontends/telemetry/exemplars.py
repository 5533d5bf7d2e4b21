"""Keeps, for each bucket of a histogram of phases, the latest call that has a trace."""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

from flashpool.pool.calls import Provision, Receipt
from flashpool.pool.histograms import BOUNDS
from flashpool.pool.recorder import PHASES, PROVISIONING


class Seen(NamedTuple):
    """One call, in the bucket of one phase."""

    trace_id: str
    seconds: float
    #: Seconds since 1970.
    at: float


class Exemplars:
    """At most one exemplar for each phase and bucket."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, int], Seen] = {}

    def add(self, receipt: Receipt, trace_id: str, at: float) -> None:
        """Remember a call, in the phases for which `Recorder` counts the call."""
        origin = receipt.provision.origin
        if origin in ("", "failed"):
            return
        for phase in PHASES:
            of: Provision | Receipt = receipt
            if phase in PROVISIONING:
                counted, of = origin != "base", receipt.provision
            else:
                counted = phase in ("queue", "total") or receipt.attempts > 0
            if counted:
                seconds: float = getattr(of, f"{phase}_s")
                place = phase, bisect_left(BOUNDS, seconds)
                self._found[place] = Seen(trace_id, seconds, at)

    def get(self, phase: str, bucket: int) -> Seen | None:
        """Return the exemplar of a bucket; the first bucket is 0."""
        return self._found.get((phase, bucket))
