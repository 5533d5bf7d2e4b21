"""Decides which environment makes room when more have calls than may run: they take turns.

An idle environment is stopped at once, the least recently used first. If none is idle, the calls of
the environment that needs room wait, for `TURN_S` at most. Then the environment that has run
longest *yields*: it takes no call that came after those, and is stopped when it is idle.

    up --TURN_S over, and another waits as long--> yielding --idle--> stopped
     ^                                               |
     '---- no environment waits for its room --------'

Decisions only: the scheduler stops the environments that this names.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from .zygote_table import EnvironmentRows, ZygoteRow, ZygoteTable

#: How long calls wait for an environment to become idle before an environment must yield.
TURN_S: Final = 2.0


class Turn(NamedTuple):
    """The environment to stop now; if None, whether other calls than before may be dispatched."""

    goes: EnvironmentRows | None = None
    changed: bool = False


class TimeSlicing:
    """Records which environments yield, and to which."""

    def __init__(self, zygote_table: ZygoteTable) -> None:
        self._zygote_table = zygote_table
        #: By environment: it takes no calls younger than this time, so that others have their turn.
        self.yielding: dict[str, float] = {}

    def yields(self, zygote: ZygoteRow, since: float) -> bool:
        """Return whether a call of that age must wait until the environment's next turn."""
        limit = self.yielding.get(zygote.key.environment)
        return limit is not None and since > limit

    def who_goes(self, zygote: ZygoteRow, now: float) -> Turn:
        """Choose the environment to stop when a zygote must start and there is no room."""
        live = [group for group in self._zygote_table.beside_base() if group.live]
        if any(group.is_exiting for group in live):
            return Turn()
        if idle := [group for group in live if group.idle]:
            return Turn(min(idle, key=lambda group: group.last_used))
        if not zygote.needed or now - zygote.since < TURN_S:
            return Turn()
        return self._yield_to(zygote.since, live, now)

    def _yield_to(self, since: float, live: list[EnvironmentRows], now: float) -> Turn:
        """Let an environment run the calls from before ``since``, and then stop it."""
        changed = False
        for group in self._chosen(live, now):
            environment = group.environment
            if not any(z.busy or (z.needed and z.since <= since) for z in group.zygotes):
                self.yielding.pop(environment, None)
                return Turn(group)
            # Otherwise the calls it yielded to may have been withdrawn, and the next ones are
            # younger.
            changed |= self.yielding.get(environment, since) != since
            self.yielding[environment] = since
        return Turn(changed=changed)

    def _chosen(self, live: list[EnvironmentRows], now: float) -> list[EnvironmentRows]:
        """Return environments that yield already; else the one up longest, if long enough."""
        able = [
            group
            for group in live
            if any(z.up for z in group.zygotes)
            if not any(z.residents or z.starting for z in group.zygotes)
        ]
        chosen = [group for group in able if group.environment in self.yielding]
        if not chosen and able:
            longest = min(able, key=lambda group: group.up_since)
            chosen = [longest] if now - longest.up_since >= TURN_S else []
        return chosen

    def end_if_over(self, held_up: list[ZygoteRow]) -> bool:
        """Stop yielding if all environments that wait for a start have room; return whether so."""
        if not self.yielding:
            return False
        if not all(self._zygote_table.has_room(zygote.key.environment) for zygote in held_up):
            return False
        # The environments that had to wait had their turn, or need none.
        self.yielding.clear()
        return True
