"""The waiting calls: each at the entry of its zygote, and calls for GPUs also in the GPUs' queue.

    join --> waits at its zygote's entry --> remove (dispatched, or withdrawn)
                     |      ^
                     '------'  hand_on, reroute: to another zygote's entry

A call for GPUs is in two places: at its zygote's entry, and, exactly while that zygote can fork, in
the table's queue of claims. While the zygote starts, the call keeps no device from others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

from flashpool.pool.gpus.table import GpuTable

from .commands import ZygoteKey
from .zygote_table import ZygoteRow, ZygoteTable

_Since = TypeVar("_Since", float, tuple[float, int])


class Wait(NamedTuple):
    """Calls that wait for the same thing."""

    number: int
    #: When the oldest of them arrived.
    since: float


class WaitQueue:
    """All waiting calls."""

    def __init__(self, zygote_table: ZygoteTable, gpus: GpuTable) -> None:
        self._zygote_table = zygote_table
        self._gpus = gpus
        #: By call: the zygote that it waits for.
        self.calls: dict[int, ZygoteKey] = {}

    def join(self, call: int, zygote: ZygoteRow, now: float, *, gpus: int, again: bool) -> None:
        """Add a call to a zygote's entry; in front of all others if it was dispatched before."""
        self.calls[call] = zygote.key
        if gpus:
            zygote.for_gpus[call] = now, gpus
            if zygote.can_fork:
                self._gpus.claim(call, gpus, 0.0 if again else now)
        elif again:
            zygote.waiting = {call: now, **zygote.waiting}
        else:
            zygote.waiting[call] = now

    def remove(self, call: int) -> ZygoteRow | None:
        """Remove a call; return the zygote that it waited for, if any."""
        key = self.calls.pop(call, None)
        if key is None:
            return None
        zygote = self._zygote_table.entries[key]
        if zygote.for_gpus.pop(call, None):
            self._gpus.withdraw(call)
        else:
            del zygote.waiting[call]
        return zygote

    def remove_all(self, zygote: ZygoteRow) -> list[int]:
        """Remove all calls that wait for a zygote, and return them."""
        calls = [*zygote.waiting, *zygote.for_gpus]
        for call in calls:
            self.remove(call)
        return calls

    def waits_for(self, call: int) -> ZygoteRow:
        """Return the zygote that a call waits for."""
        return self._zygote_table.entries[self.calls[call]]

    def hand_on(self, zygote: ZygoteRow, heir: ZygoteRow) -> None:
        """Move the calls of a zygote to another one, in the order in which they came."""
        self.calls.update(dict.fromkeys((*zygote.waiting, *zygote.for_gpus), heir.key))
        heir.waiting = _in_order({**zygote.waiting, **heir.waiting})
        heir.for_gpus = _in_order({**zygote.for_gpus, **heir.for_gpus})
        self.claim_gpus(zygote)
        zygote.waiting, zygote.for_gpus = {}, {}
        self.claim_gpus(heir)

    def reroute(self, calls: Iterable[int], heir: ZygoteRow) -> None:
        """Move those calls that wait for a slot to another zygote; they keep their turn."""
        moved: dict[int, float] = {}
        for call in calls:
            key = self.calls.get(call)
            since = (
                self._zygote_table.entries[key].waiting.pop(call, None) if key is not None else None
            )
            if since is not None:
                moved[call] = since
                self.calls[call] = heir.key
        heir.waiting = _in_order({**moved, **heir.waiting})

    def claim_gpus(self, zygote: ZygoteRow) -> None:
        """Keep the calls of a zygote in the queue for GPUs exactly while the zygote can fork."""
        for call, (since, number) in zygote.for_gpus.items():
            if zygote.can_fork:
                self._gpus.claim(call, number, since)
            else:
                self._gpus.withdraw(call)

    @property
    def waits(self) -> dict[str, list[Wait]]:
        """Return the waiting calls by what they wait for: ``start``, ``slot`` or ``gpu``."""
        found: dict[str, list[Wait]] = {"start": [], "slot": [], "gpu": []}
        for zygote in self._zygote_table:
            up = zygote.can_fork
            if zygote.waiting:
                since = next(iter(zygote.waiting.values()))
                found["slot" if up else "start"].append(Wait(len(zygote.waiting), since))
            if zygote.for_gpus:
                since, _ = next(iter(zygote.for_gpus.values()))
                found["gpu" if up else "start"].append(Wait(len(zygote.for_gpus), since))
        return found


def _in_order(calls: dict[int, _Since]) -> dict[int, _Since]:
    """Return the calls in the order of their arrival."""
    return dict(sorted(calls.items(), key=lambda item: item[1]))
