"""Who runs next: decisions only. No clock, no descriptor, no process in here.

    submitted, withdrawn, ended            StartZygote, RetireZygote
    zygote_ready, zygote_lost      --->    ForkWorkers, DismissWorker
    worker_ready, worker_gone              Dispatch, Grant, Fail
    rested, wants_slot
    tick, gpus_changed

Events are methods, named for what happened and given the time; each returns the commands
to carry out, in order. The supervisor alone calls them, and carries them out.

The rules:

* A call needs a slot and a spare of its zygote. It holds the slot until its worker's
  process tree is gone (`worker_gone`), not just until its result is here.
* A call for GPUs needs a lease of them (see `gpus`) in place of a slot, and holds that for
  as long. It stands in line for them while its zygote can fork: one that is still starting
  keeps no device from others.
* Oldest first among the calls whose zygote has a spare; a zygote that starts or builds
  never holds up the calls of others.
* A resident is a worker that gives its slot back (`rested`) and stays. Each time it has
  something to do it asks for one (`wants_slot`), and waits its turn with the calls.
* Spares are forked ahead, some times as many as calls ran at once of late, at most
  ``max_spares``; `tick` lets them go when a zygote had no call for ``spare_idle_s``.
* Environments other than the base's may be up in a bounded number (``max_environments``).
  One more is started in place of the one that is idle for longest. While none is idle its
  calls wait, for `TURN_S` at most: then the one that is up for longest takes no call that
  came after them, and goes when it is idle. So under a steady load environments take turns.
  One that had no call for ``environment_idle_s`` is retired by `tick`.
* A zygote that does not come up, or forks nothing, is started again when a call needs it,
  a bounded number of times a minute; past that, calls for it fail at once with the reason,
  until the minute is over.
* One that was killed when it had forked workers can start: it is started again however
  often that happens, at once at first, then after a pause in which its calls wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from .calls import BASE_ENVIRONMENT
from .gpu_states import GpuPolicy, Lease
from .gpus import GpuTable

#: Starts of one zygote within `RESTART_WINDOW_S`, past which it counts as broken.
RESTART_LIMIT: Final = 5
RESTART_WINDOW_S: Final = 60.0
#: Before the next start of one that was killed: by how often it was, in that window.
RESTART_PAUSES_S: Final = (0.0, 0.0, 0.0, 1.0, 2.0, 5.0)
#: How long calls wait for an environment to become idle before one has to.
TURN_S: Final = 2.0
#: How often `tick` expects to be called, at least.
TICK_S: Final = 1.0


class ZygoteKey(NamedTuple):
    """Which zygote: an environment, and what is preloaded in it (0: nothing)."""

    environment: str
    profile: int = 0


class StartZygote(NamedTuple):
    """Start it; answer with `zygote_ready` or `zygote_lost`."""

    key: ZygoteKey


class RetireZygote(NamedTuple):
    """Nobody needs it any more: let it end when its workers have."""

    key: ZygoteKey


class ForkWorkers(NamedTuple):
    """Fork spares; answer with as many `worker_ready` or `worker_gone`."""

    key: ZygoteKey
    number: int


class DismissWorker(NamedTuple):
    """End a spare; answer with `worker_gone`."""

    worker: int


class Dispatch(NamedTuple):
    """Hand the call to the spare, with these GPUs."""

    call: int
    worker: int
    gpus: tuple[str, ...] = ()


class Grant(NamedTuple):
    """The resident that asked for a slot has one."""

    worker: int


class Fail(NamedTuple):
    """End a waiting call: its zygote cannot be started, because of ``reason``."""

    call: int
    key: ZygoteKey
    reason: str


Command = StartZygote | RetireZygote | ForkWorkers | DismissWorker | Dispatch | Grant | Fail


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The scheduler's settings."""

    slots: int
    queue_limit: int | None = None
    max_spares: int = 8
    spare_idle_s: float = 60.0
    #: Environments beside the base that may be up at once.
    max_environments: int = 32
    environment_idle_s: float = 900.0


class QueueFull(Exception):
    """No more calls may wait."""


@dataclass(slots=True)
class _Zygote:
    """What is known of one zygote."""

    key: ZygoteKey
    up: bool = False
    starting: bool = False
    retiring: bool = False
    #: It was told to leave; `zygote_lost` follows.
    leaving: bool = False
    #: When it was started, without those starts that came to a worker.
    starts: deque[float] = field(default_factory=deque)
    #: Whether this start came to a worker; when those that did were killed.
    proven: bool = False
    kills: deque[float] = field(default_factory=deque)
    last_failure: str = ""
    last_used: float = 0.0
    up_since: float = 0.0
    waiting: dict[int, float] = field(default_factory=dict)
    #: Calls for GPUs that wait, since when, and for how many.
    for_gpus: dict[int, tuple[float, int]] = field(default_factory=dict)
    spares: deque[int] = field(default_factory=deque)
    forking: int = 0
    #: Workers that were dispatched to and whose tree is not gone.
    busy: int = 0
    #: Workers that stay between calls.
    residents: int = 0
    #: Most busy at once, of late.
    peak: int = 0

    @property
    def needed(self) -> bool:
        """Whether calls wait for it."""
        return bool(self.waiting or self.for_gpus)


class Scheduler:
    """The pool's state: queue, slots, zygotes and their workers."""

    def __init__(self, policy: Policy, gpus: GpuTable | None = None) -> None:
        self.policy = policy
        self.gpus = GpuTable(GpuPolicy()) if gpus is None else gpus
        self.busy = 0
        self.waiting = 0
        self._zygotes: dict[ZygoteKey, _Zygote] = {}
        self._call_key: dict[int, ZygoteKey] = {}
        self._worker_key: dict[int, ZygoteKey] = {}
        #: Workers that hold a slot, and those that hold GPUs.
        self._holding: set[int] = set()
        #: Residents, and those of them that want a slot: since when.
        self._residents: set[int] = set()
        self._asking: dict[int, float] = {}
        self._leases: dict[int, Lease] = {}
        #: Environments that take no calls younger than this, for others to have their turn.
        self._yielding: dict[str, float] = {}
        #: Whether calls may be waiting for the room of an environment; see `kept_by_residents`.
        self.crowded = False

    # Calls.

    def check_room(self, gpus: int = 0, beside: int = 0) -> None:
        """Whether one more call may wait; ``beside`` wait elsewhere.

        Raises:
            QueueFull: the queue is at its limit.
        """
        limit = self.policy.queue_limit
        waiting = self.waiting + beside
        if limit is None or waiting < limit:
            return
        if waiting or not self._could_run_now(gpus):
            raise QueueFull

    def submitted(
        self,
        call: int,
        key: ZygoteKey,
        now: float,
        *,
        gpus: int = 0,
        again: bool = False,
        beside: int | None = 0,
    ) -> list[Command]:
        """A call arrived, for so many GPUs; ``again`` when its worker died before it began.

        ``beside``: calls that wait elsewhere, or None when the queue's limit is of no concern.

        Raises:
            QueueFull: the queue is at its limit; nothing was changed.
        """
        if not again and beside is not None:
            self.check_room(gpus, beside)
        zygote = self._zygote(key)
        zygote.last_used = now
        if not zygote.up:
            zygote.retiring = False
        if gpus:
            zygote.for_gpus[call] = now, gpus
            if self._can_fork(zygote):
                self.gpus.claim(call, gpus, 0.0 if again else now)
        elif again:
            zygote.waiting = {call: now, **zygote.waiting}
        else:
            zygote.waiting[call] = now
        self.waiting += 1
        self._call_key[call] = key
        return self._settle(zygote, now)

    def withdrawn(self, call: int, now: float) -> bool:
        """A call is cancelled or timed out; True if it was still waiting."""
        key = self._call_key.get(call)
        if key is None:
            return False
        self._forget(self._zygotes[key], call)
        return True

    def waiting_since(self) -> float | None:
        """When the oldest waiting call arrived."""
        return min((_since(z) for z in self._zygotes.values() if z.needed), default=None)

    # Zygotes.

    def wanted(self, key: ZygoteKey, now: float) -> list[Command]:
        """Have this zygote up, though no call needs it yet."""
        zygote = self._zygote(key)
        zygote.last_used = now
        zygote.peak = max(zygote.peak, 1)
        return self._start(zygote, now) + self._fork(zygote)

    def zygote_ready(self, key: ZygoteKey, now: float) -> list[Command]:
        """It is up and can fork."""
        zygote = self._zygotes[key]
        zygote.up, zygote.starting, zygote.up_since = True, False, now
        self._line_up(zygote)
        return self._settle(zygote, now) + self._start_held_up(now)

    def zygote_lost(
        self, key: ZygoteKey, reason: str, now: float, *, curable: bool = False
    ) -> list[Command]:
        """It died, or never came up; `worker_gone` follows for each worker that had a call.

        ``curable``: it would come up if it were started again, differently.
        """
        zygote = self._zygotes.get(key)
        if zygote is None:
            return []
        failed_start = zygote.starting
        if zygote.proven and not zygote.retiring:
            zygote.kills.append(now)
        zygote.up = zygote.starting = zygote.leaving = zygote.proven = False
        zygote.forking = 0
        zygote.last_failure = reason
        for worker in zygote.spares:
            self._worker_key.pop(worker)
        zygote.spares.clear()
        self._line_up(zygote)
        if zygote.retiring and zygote.needed:
            # Calls came for it while it left: it is needed again.
            zygote.retiring = False
        if zygote.retiring:
            commands = self._retire_if_done(zygote)
        elif failed_start and not curable:
            # What it met it will meet again: whoever waits is told now.
            commands = self._fail_waiting(zygote)
        else:
            commands = self._settle(zygote, now)
        # GPUs that were kept for its calls may be for others now.
        return commands + self._dispatch(now) + self._start_held_up(now)

    def retire(self, key: ZygoteKey, heir: ZygoteKey, now: float) -> list[Command]:
        """It is replaced: its waiting calls go to the heir, it ends with its last worker."""
        zygote = self._zygotes.get(key)
        if zygote is None or zygote.retiring:
            return []
        zygote.retiring = True
        after = self._zygote(heir)
        after.waiting = dict(
            sorted({**zygote.waiting, **after.waiting}.items(), key=lambda item: item[1])
        )
        after.for_gpus = dict(
            sorted({**zygote.for_gpus, **after.for_gpus}.items(), key=lambda item: item[1])
        )
        self._call_key.update(dict.fromkeys((*zygote.waiting, *zygote.for_gpus), heir))
        self._line_up(zygote)
        zygote.waiting, zygote.for_gpus = {}, {}
        self._line_up(after)
        commands: list[Command] = [DismissWorker(worker) for worker in zygote.spares]
        zygote.spares.clear()
        return commands + self._retire_if_done(zygote) + self._settle(after, now)

    def rerouted(self, calls: Iterable[int], key: ZygoteKey, now: float) -> list[Command]:
        """These go to another zygote, if they wait for a slot still; their turn is what it was."""
        moved: dict[int, float] = {}
        for call in calls:
            before = self._call_key.get(call)
            since = self._zygotes[before].waiting.pop(call, None) if before is not None else None
            if since is not None:
                moved[call] = since
                self._call_key[call] = key
        after = self._zygote(key)
        after.waiting = dict(sorted({**moved, **after.waiting}.items(), key=lambda item: item[1]))
        return self._settle(after, now)

    def retire_idle(self, environment: str, now: float) -> list[Command]:
        """Nobody insists on this environment any more: let it go, unless a call uses it."""
        zygotes = self._of(environment)
        return self._let_go(zygotes) if zygotes and _idle(zygotes) else []

    def is_idle(self, environment: str) -> bool:
        """Whether it could be let go of now."""
        return _idle(self._of(environment))

    def is_kept_by_residents(self, environment: str) -> bool:
        """Whether it could be let go of, were it not for its residents."""
        return _kept_by_residents(self._of(environment))

    def kept_by_residents(self) -> list[str]:
        """While calls wait for the room of an environment: those that residents keep up.

        Rather ones that nothing else does. None, when one is about to leave.
        """
        beside = self._beside_base()
        held_up = [one for one, zygotes in beside.items() if any(map(_is_held_up, zygotes))]
        self.crowded = any(not self._has_room(one) for one in held_up)
        if not self.crowded or any(_live(zs) and _leaves(zs) for zs in beside.values()):
            return []
        kept = [name for name, zygotes in beside.items() if any(z.residents for z in zygotes)]
        return [name for name in kept if _kept_by_residents(beside[name])] or kept

    def uses(self, environment: str) -> bool:
        """Whether it has a zygote, or a call that waits for one."""
        return any(key.environment == environment for key in self._zygotes)

    def is_up(self, key: ZygoteKey) -> bool:
        """Whether calls may be sent its way without waiting for a start."""
        zygote = self._zygotes.get(key)
        return zygote is not None and zygote.up and not zygote.retiring

    # Workers.

    def worker_ready(self, worker: int, key: ZygoteKey, now: float) -> list[Command]:
        """A spare was forked and can take a call."""
        zygote = self._zygotes[key]
        zygote.forking = max(0, zygote.forking - 1)
        if not zygote.proven:
            zygote.proven = True
            zygote.starts.pop()
        if zygote.retiring:
            self._worker_key[worker] = key
            done = self._retire_if_done(zygote)
            return [DismissWorker(worker), *done, *self._start_held_up(now)]
        self._worker_key[worker] = key
        zygote.spares.append(worker)
        return self._dispatch(now)

    def worker_not_ready(self, key: ZygoteKey, now: float) -> list[Command]:
        """A fork that was asked for ended before it could take a call."""
        zygote = self._zygotes[key]
        zygote.forking = max(0, zygote.forking - 1)
        if zygote.retiring:
            return self._retire_if_done(zygote) + self._start_held_up(now)
        return self._settle(zygote, now)

    def worker_gone(self, worker: int, now: float) -> list[Command]:
        """Its whole process tree is gone: the slot it held is free."""
        key = self._worker_key.pop(worker, None)
        if key is None:
            return []
        zygote = self._zygotes.get(key)
        if zygote is None:
            return []
        if lease := self._leases.pop(worker, None):
            self.gpus.release(lease, now)
            zygote.busy -= worker not in self._residents
        elif worker in self._holding:
            self._holding.remove(worker)
            self.busy -= 1
            zygote.busy -= worker not in self._residents
        else:
            _discard(zygote.spares, worker)
        if worker in self._residents:
            self._residents.remove(worker)
            self._asking.pop(worker, None)
            zygote.residents -= 1
        if zygote.retiring:
            commands = self._dispatch(now) + self._retire_if_done(zygote)
        else:
            commands = self._dispatch(now) + self._fork(zygote)
        return commands + self._start_held_up(now)

    def spare_died(self, worker: int) -> None:
        """A spare's death is known before its tree is gone: offer it to no call."""
        key = self._worker_key.get(worker)
        if key is not None:
            _discard(self._zygotes[key].spares, worker)

    # Residents.

    def rested(self, worker: int, now: float) -> list[Command]:
        """It has nothing to do for now, and stays; its slot is free, its GPUs are not."""
        key = self._worker_key.get(worker)
        if key is None:
            return []
        if worker not in self._residents:
            self._residents.add(worker)
            zygote = self._zygotes[key]
            zygote.busy -= 1
            zygote.residents += 1
        if worker not in self._holding:
            return []
        self._holding.remove(worker)
        self.busy -= 1
        return self._dispatch(now)

    def wants_slot(self, worker: int, since: float, now: float) -> list[Command]:
        """It has something to do, since then. One that has GPUs needs no slot."""
        self._zygotes[self._worker_key[worker]].last_used = now
        if worker in self._leases:
            return [Grant(worker)]
        self._asking[worker] = since
        return self._dispatch(now)

    def gpus_changed(self, now: float) -> list[Command]:
        """Devices became free, or were lost."""
        return self._dispatch(now)

    # Time.

    def tick(self, now: float) -> list[Command]:
        """Let go of what has not been needed for long. Call it every `TICK_S` or so."""
        commands: list[Command] = []
        for zygote in self._zygotes.values():
            idle = now - zygote.last_used
            zygote.peak = max(
                zygote.busy, zygote.peak - 1, 0 if idle > self.policy.spare_idle_s else 1
            )
            surplus = len(zygote.spares) - self._spares_wanted(zygote)
            commands += (DismissWorker(zygote.spares.popleft()) for _ in range(surplus))
        return commands + self._retire_unused(now) + self._start_held_up(now)

    # Views, for stats and tests.

    def spares(self, key: ZygoteKey) -> int:
        """Spares that wait for a call."""
        zygote = self._zygotes.get(key)
        return len(zygote.spares) if zygote else 0

    def keys(self) -> Iterable[ZygoteKey]:
        """All zygotes known."""
        return self._zygotes.keys()

    # Decisions.

    def _zygote(self, key: ZygoteKey) -> _Zygote:
        zygote = self._zygotes.get(key)
        if zygote is None:
            zygote = self._zygotes[key] = _Zygote(key)
        return zygote

    def _could_run_now(self, gpus: int) -> bool:
        return self.gpus.has(gpus) if gpus else self.busy < self.policy.slots

    def _can_fork(self, zygote: _Zygote) -> bool:
        return zygote.up and not zygote.retiring

    def _line_up(self, zygote: _Zygote) -> None:
        """Have its calls stand in line for GPUs exactly while it can fork for them."""
        ready = self._can_fork(zygote)
        for call, (since, number) in zygote.for_gpus.items():
            if ready:
                self.gpus.claim(call, number, since)
            else:
                self.gpus.withdraw(call)

    def _settle(self, zygote: _Zygote, now: float) -> list[Command]:
        """Start, dispatch and fork for one zygote, in that order."""
        if not zygote.up:
            return self._start(zygote, now) if zygote.needed else []
        return self._dispatch(now) + self._fork(zygote)

    def _start(self, zygote: _Zygote, now: float) -> list[Command]:
        if zygote.up or zygote.starting:
            return []
        for times in (zygote.starts, zygote.kills):
            while times and now - times[0] > RESTART_WINDOW_S:
                times.popleft()
        if _pauses(zygote, now):
            return []
        if len(zygote.starts) >= RESTART_LIMIT:
            return self._fail_waiting(zygote)
        if not self._is_next(zygote, now):
            return []
        commands = self._make_room_for(zygote, now)
        if zygote.retiring or not self._has_room(zygote.key.environment):
            self.crowded = self.crowded or not commands
            return commands
        zygote.starts.append(now)
        zygote.starting = True
        return [*commands, StartZygote(zygote.key)]

    def _fail_waiting(self, zygote: _Zygote) -> list[Command]:
        reason = zygote.last_failure
        calls = [*zygote.waiting, *zygote.for_gpus]
        for call in calls:
            self._forget(zygote, call)
        return [Fail(call, zygote.key, reason) for call in calls]

    def _forget(self, zygote: _Zygote, call: int) -> None:
        if zygote.for_gpus.pop(call, None):
            self.gpus.withdraw(call)
        else:
            del zygote.waiting[call]
        del self._call_key[call]
        self.waiting -= 1

    def _dispatch(self, now: float) -> list[Command]:
        """Pair waiting calls with spares while there are GPUs and slots, oldest call first."""
        touched: list[_Zygote] = []
        commands = self._dispatch_to_gpus(touched, now)
        while (self.waiting or self._asking) and self.busy < self.policy.slots:
            zygote = self._oldest_with_spare() if self.waiting else None
            if self._asking and (asking := self._longest_asking(zygote)) is not None:
                commands.append(self._grant(asking))
                continue
            if zygote is None:
                break
            call = next(iter(zygote.waiting))
            self._forget(zygote, call)
            worker = zygote.spares.popleft()
            self._holding.add(worker)
            self.busy += 1
            commands.append(Dispatch(call, worker))
            self._got_busy(zygote, touched, now)
        if self.waiting and (self.busy < self.policy.slots or self.gpus.waiting):
            # One is free for calls whose zygotes have not forked for want of it.
            touched = [
                zygote for zygote in self._zygotes.values() if zygote.needed or zygote in touched
            ]
        for zygote in touched:
            commands += self._fork(zygote)
        return commands

    def _longest_asking(self, rival: _Zygote | None) -> int | None:
        """The resident that wants a slot for longest, if for longer than the rival's call."""
        worker = min(self._asking, key=self._asking.__getitem__)
        return None if rival and _since(rival) < self._asking[worker] else worker

    def _grant(self, worker: int) -> Command:
        del self._asking[worker]
        self._holding.add(worker)
        self.busy += 1
        return Grant(worker)

    def _dispatch_to_gpus(self, touched: list[_Zygote], now: float) -> list[Command]:
        commands: list[Command] = []
        for call, _uuids in self.gpus.grants():
            zygote = self._zygotes[self._call_key[call]]
            if not zygote.spares or self._yields(zygote, zygote.for_gpus[call][0]):
                continue  # its devices are kept; a fork is under way, or it stands in line anew
            lease = self.gpus.take(call, now)
            self._forget(zygote, call)
            worker = zygote.spares.popleft()
            self._leases[worker] = lease
            commands.append(Dispatch(call, worker, lease.uuids))
            self._got_busy(zygote, touched, now)
        return commands

    def _got_busy(self, zygote: _Zygote, touched: list[_Zygote], now: float) -> None:
        zygote.busy += 1
        zygote.peak = max(zygote.peak, zygote.busy)
        zygote.last_used = now
        if zygote not in touched:
            touched.append(zygote)

    def _oldest_with_spare(self) -> _Zygote | None:
        if len(self._zygotes) == 1:
            (zygote,) = self._zygotes.values()
            return zygote if zygote.waiting and zygote.spares else None
        able = [z for z in self._zygotes.values() if z.waiting and z.spares]
        if self._yielding:
            able = [z for z in able if not self._yields(z, next(iter(z.waiting.values())))]
        return min(able, key=lambda zygote: next(iter(zygote.waiting.values())), default=None)

    def _fork(self, zygote: _Zygote) -> list[Command]:
        if not zygote.up or zygote.retiring:
            return []
        wanted = self._spares_wanted(zygote)
        have = len(zygote.spares) + zygote.forking
        # Several at a time, when several are kept: a zygote forks them more cheaply.
        if have >= wanted or (have > wanted // 2 and have >= self._could_run(zygote)):
            return []
        missing = wanted - have
        zygote.forking += missing
        return [ForkWorkers(zygote.key, missing)]

    def _spares_wanted(self, zygote: _Zygote) -> int:
        """A multiple of those that ran at once of late, or one for each that could run now.

        Two for a single caller, who comes back before the next one is forked.
        """
        ahead = 4 * zygote.peak if zygote.peak > 1 else 2 * zygote.peak
        return max(self._could_run(zygote), min(ahead, self.policy.max_spares))

    def _could_run(self, zygote: _Zygote) -> int:
        able = min(len(zygote.waiting), self.policy.slots - self.busy)
        if not zygote.for_gpus:
            return able
        return able + sum(call in zygote.for_gpus for call, _uuids in self.gpus.grants())

    def _retire_if_done(self, zygote: _Zygote) -> list[Command]:
        if zygote.busy or zygote.residents or zygote.forking or zygote.leaving:
            return []
        if zygote.up:
            zygote.leaving = True
            return [RetireZygote(zygote.key)]
        self._zygotes.pop(zygote.key, None)
        return []

    # Environments beside the base: how many, and which one goes.

    def _of(self, environment: str) -> list[_Zygote]:
        return [z for key, z in self._zygotes.items() if key.environment == environment]

    def _beside_base(self) -> dict[str, list[_Zygote]]:
        found: dict[str, list[_Zygote]] = {}
        for key, zygote in self._zygotes.items():
            if key.environment != BASE_ENVIRONMENT:
                found.setdefault(key.environment, []).append(zygote)
        return found

    def _has_room(self, environment: str) -> bool:
        live = [name for name, zygotes in self._beside_base().items() if _live(zygotes)]
        beside = environment != BASE_ENVIRONMENT and environment not in live
        return not beside or len(live) < self.policy.max_environments

    def _is_next(self, zygote: _Zygote, now: float) -> bool:
        """Whether the room there is goes to no environment whose calls wait for longer."""
        environment = zygote.key.environment
        beside = self._beside_base()
        live = {name for name, zygotes in beside.items() if _live(zygotes)}
        if environment == BASE_ENVIRONMENT or environment in live or not zygote.needed:
            return True
        since = _since(zygote)
        before = {
            name
            for name, zygotes in beside.items()
            if name not in live and name != environment
            if any(z.needed and _since(z) < since and not _pauses(z, now) for z in zygotes)
        }
        return len(before) < max(1, self.policy.max_environments - len(live))

    def _make_room_for(self, zygote: _Zygote, now: float) -> list[Command]:
        """Let an environment go when there is no room: the least recently used idle one.

        While all have calls, one of them has to become idle when this one has waited enough.
        """
        if self._has_room(zygote.key.environment):
            return []
        live = [zygotes for zygotes in self._beside_base().values() if _live(zygotes)]
        if any(_leaves(zygotes) for zygotes in live):
            return []
        if idle := [zygotes for zygotes in live if _idle(zygotes)]:
            return self._let_go(min(idle, key=_last_used))
        if not zygote.needed or now - _since(zygote) < TURN_S:
            return []
        return self._take_turn(live, _since(zygote), now)

    def _take_turn(self, live: list[list[_Zygote]], since: float, now: float) -> list[Command]:
        """Have one environment run what came before ``since``, and go then."""
        able = [
            zygotes
            for zygotes in live
            if any(z.up for z in zygotes)
            if not any(z.residents or z.starting for z in zygotes)
        ]
        chosen = [zygotes for zygotes in able if zygotes[0].key.environment in self._yielding]
        if not chosen and able:
            longest = min(able, key=_up_since)
            if now - _up_since(longest) < TURN_S:
                return []
            chosen = [longest]
        changed = False
        for zygotes in chosen:
            environment = zygotes[0].key.environment
            if not any(z.busy or (z.needed and _since(z) <= since) for z in zygotes):
                self._yielding.pop(environment, None)
                return self._let_go(zygotes)
            changed |= self._yielding.get(environment, since) != since
            self._yielding[environment] = since
        # The one that it was for went away, and the next one came later.
        return self._dispatch(now) if changed else []

    def _yields(self, zygote: _Zygote, since: float) -> bool:
        """Whether a call that came then has to wait until the environment's next turn."""
        limit = self._yielding.get(zygote.key.environment)
        return limit is not None and since > limit

    def _start_held_up(self, now: float) -> list[Command]:
        """Start zygotes whose calls waited for room, the longest first."""
        if not self.waiting and not self._yielding:
            return []
        held_up = [z for z in self._zygotes.values() if _is_held_up(z)]
        commands: list[Command] = []
        for zygote in sorted(held_up, key=_since):
            commands += self._start(zygote, now)
        if self._yielding and all(self._has_room(z.key.environment) for z in held_up):
            # Those it was for have their turn, or went away.
            self._yielding.clear()
            commands += self._dispatch(now)
        return commands

    def _retire_unused(self, now: float) -> list[Command]:
        commands: list[Command] = []
        for zygotes in self._beside_base().values():
            age = now - _last_used(zygotes)
            # One that does not come up is remembered for as long as its starts count.
            limit = 0.0 if _live(zygotes) else RESTART_WINDOW_S
            if age > max(limit, self.policy.environment_idle_s) and _idle(zygotes):
                commands += self._let_go(zygotes)
        return commands

    def _let_go(self, zygotes: list[_Zygote]) -> list[Command]:
        commands: list[Command] = []
        for zygote in zygotes:
            if zygote.retiring:
                continue
            zygote.retiring = True
            self._line_up(zygote)
            commands += (DismissWorker(worker) for worker in zygote.spares)
            zygote.spares.clear()
            commands += self._retire_if_done(zygote)
        return commands


def _pauses(zygote: _Zygote, now: float) -> bool:
    """Whether it was killed so often of late that its next start must wait a little."""
    if not zygote.kills:
        return False
    pause = RESTART_PAUSES_S[min(len(zygote.kills), len(RESTART_PAUSES_S) - 1)]
    return now - zygote.kills[-1] < pause


def _live(zygotes: list[_Zygote]) -> bool:
    """Whether the environment takes room; what leaves does not."""
    return any((z.up or z.starting) and not z.leaving for z in zygotes)


def _idle(zygotes: list[_Zygote]) -> bool:
    return not any(z.needed or z.busy or z.residents or z.starting for z in zygotes)


def _leaves(zygotes: list[_Zygote]) -> bool:
    """Whether it is on its way out: no call is in it, and no zygote of it stays."""
    return all(z.retiring or not z.up for z in zygotes) and not any(
        z.busy or z.residents or z.starting for z in zygotes
    )


def _up_since(zygotes: list[_Zygote]) -> float:
    return min(z.up_since for z in zygotes if z.up)


def _is_held_up(zygote: _Zygote) -> bool:
    return zygote.needed and not (zygote.up or zygote.starting)


def _kept_by_residents(zygotes: list[_Zygote]) -> bool:
    return any(z.residents for z in zygotes) and not any(
        z.needed or z.busy or z.starting for z in zygotes
    )


def _last_used(zygotes: list[_Zygote]) -> float:
    return max(z.last_used for z in zygotes)


def _since(zygote: _Zygote) -> float:
    first = [next(iter(calls.values())) for calls in (zygote.waiting,) if calls]
    first += [next(iter(calls.values()))[0] for calls in (zygote.for_gpus,) if calls]
    return min(first)


def _discard(spares: deque[int], worker: int) -> None:
    try:
        spares.remove(worker)
    except ValueError:
        pass
