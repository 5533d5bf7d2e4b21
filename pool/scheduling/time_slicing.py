"""Who makes room when more environments have calls than may be up: they take turns.

An idle environment goes at once, the least recently used first. While none is idle, the
calls of the one that needs room wait, for `TURN_S` at most. Then the one that is up for
longest *yields*: it takes no call that came after those, and goes when it is idle.

    up --TURN_S over, another one waits for as long--> yielding --idle--> let go
     ^                                                    |
     '---- nobody waits for its room any more ------------'

Decisions only: the scheduler lets go of what this names.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from .zygote_table import EnvironmentRows, ZygoteRow, ZygoteTable

#: How long calls wait for an environment to become idle before one has to.
TURN_S: Final = 2.0


class Turn(NamedTuple):
    """Who goes now; without one, whether other calls may be dispatched than before."""

    goes: EnvironmentRows | None = None
    changed: bool = False


class TimeSlicing:
    """Which environments yield, and to whom."""

    def __init__(self, zygote_table: ZygoteTable) -> None:
        self._zygote_table = zygote_table
        #: Environments that take no calls younger than this, for others to have their turn.
        self.yielding: dict[str, float] = {}

    def yields(self, zygote: ZygoteRow, since: float) -> bool:
        """Whether a call that came then has to wait until the environment's next turn."""
        limit = self.yielding.get(zygote.key.environment)
        return limit is not None and since > limit

    def who_goes(self, zygote: ZygoteRow, now: float) -> Turn:
        """A zygote is to start, and there is no room for it."""
        live = [group for group in self._zygote_table.beside_base() if group.live]
        if any(group.is_exiting for group in live):
            return Turn()
        if idle := [group for group in live if group.idle]:
            return Turn(min(idle, key=lambda group: group.last_used))
        if not zygote.needed or now - zygote.since < TURN_S:
            return Turn()
        return self._yield_to(zygote.since, live, now)

    def _yield_to(self, since: float, live: list[EnvironmentRows], now: float) -> Turn:
        """Have one environment run what came before ``since``, and go then."""
        changed = False
        for group in self._chosen(live, now):
            environment = group.environment
            if not any(z.busy or (z.needed and z.since <= since) for z in group.zygotes):
                self.yielding.pop(environment, None)
                return Turn(group)
            # Else it may be that whom it was for went away, and the next one came later.
            changed |= self.yielding.get(environment, since) != since
            self.yielding[environment] = since
        return Turn(changed=changed)

    def _chosen(self, live: list[EnvironmentRows], now: float) -> list[EnvironmentRows]:
        """Those that yield already; else the one that is up for longest, if for long enough."""
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
        """Nobody yields any more, once those that wait for a start have room: then True."""
        if not self.yielding:
            return False
        if not all(self._zygote_table.has_room(zygote.key.environment) for zygote in held_up):
            return False
        # Those it was for have their turn, or went away.
        self.yielding.clear()
        return True
