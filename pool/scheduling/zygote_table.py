"""Facts about each zygote and each environment. No decisions.

    ZygoteTable
      '-- ZygoteRow        one zygote: is it up, who waits for it, its spares, how many run
      '-- EnvironmentRows  all rows of one environment: does it take room, could it go

The scheduler writes rows; the questions here make up its rules. Environments other than the base
share a bounded number of places: an environment takes a place while it has a zygote that runs or
starts, and was not told to exit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from flashpool.pool.calls import BASE_ENVIRONMENT

from .commands import ZygoteKey

#: Starts of one zygote within `RESTART_WINDOW_S`, past which it counts as broken.
RESTART_LIMIT: Final = 5
RESTART_WINDOW_S: Final = 60.0
#: Pause before the next start of a zygote for which the machine had no resources.
NO_ROOM_PAUSE_S: Final = 0.5
#: Pauses before the next start of a zygote that was killed: by how often that happened in the
#: window since a call was last answered in it.
RESTART_PAUSES_S: Final = (0.0, 0.0, 0.0, 0.5, 1.0)


@dataclass(slots=True, eq=False)
class ZygoteRow:
    """Facts about one zygote."""

    key: ZygoteKey
    up: bool = False
    starting: bool = False
    retiring: bool = False
    #: It was told to exit; `zygote_lost` follows.
    exiting: bool = False
    #: Times of its starts, without those that produced a worker.
    starts: deque[float] = field(default_factory=deque)
    #: Whether this start produced a worker; when zygotes of such starts, or starts, were killed.
    proven: bool = False
    kills: deque[float] = field(default_factory=deque)
    #: The first of the consecutive starts that were all killed.
    hopeful_since: float | None = None
    #: No start before that time: the machine lacked resources.
    postponed_until: float = 0.0
    last_failure: str = ""
    last_used: float = 0.0
    up_since: float = 0.0
    #: Calls that wait, since when; those for GPUs also for how many.
    waiting: dict[int, float] = field(default_factory=dict)
    for_gpus: dict[int, tuple[float, int]] = field(default_factory=dict)
    spares: deque[int] = field(default_factory=deque)
    #: Forks that were asked for, and neither are here nor known to have failed.
    forking: int = 0
    #: Workers that were dispatched to and whose tree is not gone.
    busy: int = 0
    #: Those of them that have answered and hold no slot any more.
    answered: int = 0
    #: Workers that stay between calls.
    residents: int = 0
    #: Recent peak of busy workers.
    peak: int = 0

    @property
    def needed(self) -> bool:
        """Return whether calls wait for it."""
        return bool(self.waiting or self.for_gpus)

    @property
    def since(self) -> float:
        """Return when the oldest call that waits for it came; only while it is `needed`."""
        first = [next(iter(self.waiting.values()))] if self.waiting else []
        first += [next(iter(self.for_gpus.values()))[0]] if self.for_gpus else []
        return min(first)

    @property
    def can_fork(self) -> bool:
        """Return whether calls may be sent to it."""
        return self.up and not self.retiring

    @property
    def empty(self) -> bool:
        """Return whether it has no worker, not even one that is being forked."""
        return not (self.busy or self.residents or self.forking)

    def forget_old_starts(self, now: float) -> None:
        """Starts and kills of long ago count no more."""
        for times in (self.starts, self.kills):
            while times and now - times[0] > RESTART_WINDOW_S:
                times.popleft()
        if not self.kills:
            self.hopeful_since = None

    @property
    def broken(self) -> bool:
        """Return whether it was started too often without success."""
        return len(self.starts) >= RESTART_LIMIT

    def pauses(self, now: float) -> bool:
        """Return whether its next start must wait: it was killed often, or lacked resources."""
        if now < self.postponed_until:
            return True
        if not self.kills:
            return False
        pause = RESTART_PAUSES_S[min(len(self.kills), len(RESTART_PAUSES_S) - 1)]
        return now - self.kills[-1] < pause

    def is_hopeful(self, now: float) -> bool:
        """Return whether calls wait for the next start, although this one was killed."""
        return self.hopeful_since is None or now - self.hopeful_since < RESTART_WINDOW_S

    def lost(self, reason: str, now: float, *, killed: bool = False) -> None:
        """Note that it is lost with its spares and forks; ``killed``: from outside."""
        if (self.proven or killed) and not self.retiring:
            self.kills.append(now)
        if killed and not self.proven and (self.up or self.starting) and self.starts:
            started_at = self.starts.pop()  # it did not fail
            if self.hopeful_since is None:
                self.hopeful_since = started_at
        self.up = self.starting = self.exiting = self.proven = False
        self.last_failure = reason
        self.forking = 0
        self.spares.clear()

    def postpone_start(self, now: float) -> None:
        """This start came to nothing for want of room, and does not count."""
        if self.starts:
            self.starts.pop()
        self.postponed_until = now + NO_ROOM_PAUSE_S

    def works(self) -> None:
        """This start came to a worker, its first."""
        self.proven = True
        self.hopeful_since = None
        if self.starts:  # else it took so long that it counts no more
            self.starts.pop()

    def discard(self, worker: int) -> None:
        """Forget a worker that is no longer its spare."""
        try:
            self.spares.remove(worker)
        except ValueError:
            pass


@dataclass(frozen=True, slots=True)
class EnvironmentRows:
    """The zygotes of one environment."""

    environment: str
    zygotes: list[ZygoteRow]

    @property
    def live(self) -> bool:
        """Return whether it takes room; exiting zygotes do not."""
        return any((z.up or z.starting) and not z.exiting for z in self.zygotes)

    @property
    def in_use(self) -> bool:
        """Return whether it has calls, or is starting; residents do not count."""
        return any(z.needed or z.busy or z.starting for z in self.zygotes)

    @property
    def has_residents(self) -> bool:
        return any(z.residents for z in self.zygotes)

    @property
    def idle(self) -> bool:
        """Return whether it could be stopped now."""
        return not self.in_use and not self.has_residents

    @property
    def kept_by_residents(self) -> bool:
        """Return whether it could be stopped if it had no residents."""
        return self.has_residents and not self.in_use

    @property
    def is_exiting(self) -> bool:
        """Return whether it is exiting: it has no call, and none of its zygotes stays."""
        return all(z.retiring or not z.up for z in self.zygotes) and not any(
            z.busy or z.residents or z.starting for z in self.zygotes
        )

    @property
    def last_used(self) -> float:
        return max(z.last_used for z in self.zygotes)

    @property
    def up_since(self) -> float:
        """Return when the first of its running zygotes started."""
        return min(z.up_since for z in self.zygotes if z.up)


class ZygoteTable:
    """All known zygotes."""

    def __init__(self, max_environments: int) -> None:
        self._max_environments = max_environments
        self.entries: dict[ZygoteKey, ZygoteRow] = {}

    def __iter__(self) -> Iterator[ZygoteRow]:
        return iter(self.entries.values())

    def entry(self, key: ZygoteKey) -> ZygoteRow:
        """Return its entry, creating one if it is unknown."""
        entry = self.entries.get(key)
        if entry is None:
            entry = self.entries[key] = ZygoteRow(key)
        return entry

    def group(self, environment: str) -> EnvironmentRows:
        """The zygotes of an environment."""
        return EnvironmentRows(environment, [z for z in self if z.key.environment == environment])

    def beside_base(self) -> list[EnvironmentRows]:
        """Return all environments but the base."""
        found: dict[str, EnvironmentRows] = {}
        for key, zygote in self.entries.items():
            if key.environment != BASE_ENVIRONMENT:
                group = found.setdefault(key.environment, EnvironmentRows(key.environment, []))
                group.zygotes.append(zygote)
        return list(found.values())

    def held_up(self) -> list[ZygoteRow]:
        """Return environments with calls that wait for a start."""
        down = [z for z in self.entries.values() if not (z.up or z.starting)]
        return [zygote for zygote in down if zygote.needed]

    # Room for environments.

    def has_room(self, environment: str) -> bool:
        """Return whether it runs, or may run."""
        live = [group.environment for group in self.beside_base() if group.live]
        beside = environment != BASE_ENVIRONMENT and environment not in live
        return not beside or len(live) < self._max_environments

    def is_next(self, zygote: ZygoteRow, now: float) -> bool:
        """Return whether no environment has calls that have waited longer for the free room."""
        environment = zygote.key.environment
        beside = self.beside_base()
        live = [group.environment for group in beside if group.live]
        if environment == BASE_ENVIRONMENT or environment in live or not zygote.needed:
            return True
        since = zygote.since
        before = [
            group
            for group in beside
            if not group.live and group.environment != environment
            if any(z.needed and z.since < since and not z.pauses(now) for z in group.zygotes)
        ]
        return len(before) < max(1, self._max_environments - len(live))

    def crowded(self) -> bool:
        """Return whether calls wait for the room of an environment."""
        beside = [zygote.key.environment for zygote in self.held_up()]
        return any(not self.has_room(environment) for environment in dict.fromkeys(beside))

    def kept_by_residents(self) -> list[str]:
        """Return environments that residents keep running; preferably those that nothing else does.

        None if one is about to exit.
        """
        beside = self.beside_base()
        if any(group.live and group.is_exiting for group in beside):
            return []
        kept = [group for group in beside if group.has_residents]
        return [g.environment for g in kept if g.kept_by_residents] or [g.environment for g in kept]
