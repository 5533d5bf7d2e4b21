"""Facts about each zygote and each environment. No decisions.

    ZygoteTable
      '-- ZygoteRow        one zygote: is it up, who waits for it, its spares, how many run
      '-- EnvironmentRows  all rows of one environment: does it take room, can it be stopped

The scheduler writes rows; the methods here are the conditions in its rules. Environments other than
the base share a limited number of places: an environment takes a place while it has a zygote that
runs or starts, and is not exiting.
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
#: Pauses before the next start of a zygote that was killed: by the number of kills in the window
#: since a call was last answered in it.
RESTART_PAUSES_S: Final = (0.0, 0.0, 0.0, 0.5, 1.0)


@dataclass(slots=True, eq=False)
class ZygoteRow:
    """Facts about one zygote."""

    key: ZygoteKey
    up: bool = False
    starting: bool = False
    retiring: bool = False
    #: The zygote was told to exit; `zygote_lost` follows.
    exiting: bool = False
    #: Times of the zygote's starts, without those that produced a worker.
    starts: deque[float] = field(default_factory=deque)
    #: Whether this start produced a worker; and when the zygote was killed in starts that did, or
    #: starting.
    proven: bool = False
    kills: deque[float] = field(default_factory=deque)
    #: The first of the consecutive starts that were all killed.
    hopeful_since: float | None = None
    #: No start before this time: the machine lacked resources.
    postponed_until: float = 0.0
    last_failure: str = ""
    last_used: float = 0.0
    up_since: float = 0.0
    #: Waiting calls with the time of their arrival; those for GPUs also with the number.
    waiting: dict[int, float] = field(default_factory=dict)
    for_gpus: dict[int, tuple[float, int]] = field(default_factory=dict)
    spares: deque[int] = field(default_factory=deque)
    #: Forks that were requested, and have neither arrived nor been reported as failed.
    forking: int = 0
    #: Workers that have a call, or whose process tree is not gone.
    busy: int = 0
    #: Those of the busy workers that have answered and hold no slot any more.
    answered: int = 0
    #: Workers that stay between calls.
    residents: int = 0
    #: Recent peak of busy workers.
    peak: int = 0

    @property
    def needed(self) -> bool:
        """Whether calls wait for the zygote."""
        return bool(self.waiting or self.for_gpus)

    @property
    def since(self) -> float:
        """When the oldest call that waits for the zygote arrived; only while it is `needed`."""
        first = [next(iter(self.waiting.values()))] if self.waiting else []
        first += [next(iter(self.for_gpus.values()))[0]] if self.for_gpus else []
        return min(first)

    @property
    def can_fork(self) -> bool:
        """Whether calls may be sent to the zygote."""
        return self.up and not self.retiring

    @property
    def empty(self) -> bool:
        """Whether the zygote has no worker, not even one that is being forked."""
        return not (self.busy or self.residents or self.forking)

    def forget_old_starts(self, now: float) -> None:
        """Drop starts and kills that are too old to count."""
        for times in (self.starts, self.kills):
            while times and now - times[0] > RESTART_WINDOW_S:
                times.popleft()
        if not self.kills:
            self.hopeful_since = None

    @property
    def broken(self) -> bool:
        """Whether the zygote was started too often without success."""
        return len(self.starts) >= RESTART_LIMIT

    def pauses(self, now: float) -> bool:
        """Return whether the next start must wait: it was killed often, or lacked resources."""
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
        """Note that the zygote is lost, with its spares and forks; ``killed``: from outside."""
        if (self.proven or killed) and not self.retiring:
            self.kills.append(now)
        if killed and not self.proven and (self.up or self.starting) and self.starts:
            started_at = self.starts.pop()  # this start did not fail
            if self.hopeful_since is None:
                self.hopeful_since = started_at
        self.up = self.starting = self.exiting = self.proven = False
        self.last_failure = reason
        self.forking = 0
        self.spares.clear()

    def postpone_start(self, now: float) -> None:
        """Forget a start that failed for lack of resources, and postpone the next one."""
        if self.starts:
            self.starts.pop()
        self.postponed_until = now + NO_ROOM_PAUSE_S

    def works(self) -> None:
        """Note that this start has produced its first worker."""
        self.proven = True
        self.hopeful_since = None
        if self.starts:  # otherwise the start is so old that it no longer counts
            self.starts.pop()

    def discard(self, worker: int) -> None:
        """Remove a worker from the spares."""
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
        """Whether the environment takes a place; exiting zygotes do not."""
        return any((z.up or z.starting) and not z.exiting for z in self.zygotes)

    @property
    def in_use(self) -> bool:
        """Whether the environment has calls or is starting; residents do not count."""
        return any(z.needed or z.busy or z.starting for z in self.zygotes)

    @property
    def has_residents(self) -> bool:
        return any(z.residents for z in self.zygotes)

    @property
    def idle(self) -> bool:
        """Whether the environment could be stopped now."""
        return not self.in_use and not self.has_residents

    @property
    def kept_by_residents(self) -> bool:
        """Whether the environment could be stopped if it had no residents."""
        return self.has_residents and not self.in_use

    @property
    def is_exiting(self) -> bool:
        """Whether the environment is exiting: it has no call, and none of its zygotes stays."""
        return all(z.retiring or not z.up for z in self.zygotes) and not any(
            z.busy or z.residents or z.starting for z in self.zygotes
        )

    @property
    def last_used(self) -> float:
        return max(z.last_used for z in self.zygotes)

    @property
    def up_since(self) -> float:
        """When the first of the running zygotes started."""
        return min(z.up_since for z in self.zygotes if z.up)


class ZygoteTable:
    """All known zygotes."""

    def __init__(self, max_environments: int) -> None:
        self._max_environments = max_environments
        self.entries: dict[ZygoteKey, ZygoteRow] = {}

    def __iter__(self) -> Iterator[ZygoteRow]:
        return iter(self.entries.values())

    def entry(self, key: ZygoteKey) -> ZygoteRow:
        """Return a zygote's row, creating it if it is unknown."""
        entry = self.entries.get(key)
        if entry is None:
            entry = self.entries[key] = ZygoteRow(key)
        return entry

    def group(self, environment: str) -> EnvironmentRows:
        """Return the zygotes of an environment."""
        return EnvironmentRows(environment, [z for z in self if z.key.environment == environment])

    def beside_base(self) -> list[EnvironmentRows]:
        """Return the zygotes of each environment but the base."""
        found: dict[str, EnvironmentRows] = {}
        for key, zygote in self.entries.items():
            if key.environment != BASE_ENVIRONMENT:
                group = found.setdefault(key.environment, EnvironmentRows(key.environment, []))
                group.zygotes.append(zygote)
        return list(found.values())

    def held_up(self) -> list[ZygoteRow]:
        """Return the zygotes whose calls wait for a start."""
        down = [z for z in self.entries.values() if not (z.up or z.starting)]
        return [zygote for zygote in down if zygote.needed]

    # Room for environments.

    def has_room(self, environment: str) -> bool:
        """Return whether an environment runs or may start."""
        live = [group.environment for group in self.beside_base() if group.live]
        beside = environment != BASE_ENVIRONMENT and environment not in live
        return not beside or len(live) < self._max_environments

    def is_next(self, zygote: ZygoteRow, now: float) -> bool:
        """Return whether no other environment's calls have waited longer for the free room."""
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
        """Return environments that residents keep running, if possible only such without calls.

        Empty if an environment is about to exit.
        """
        beside = self.beside_base()
        if any(group.live and group.is_exiting for group in beside):
            return []
        kept = [group for group in beside if group.has_residents]
        return [g.environment for g in kept if g.kept_by_residents] or [g.environment for g in kept]
