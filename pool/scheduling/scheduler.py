"""Decides what runs next. Contains no clock, descriptor or process.

    submitted, withdrawn, rerouted              StartZygote, RetireZygote
    zygote_ready, zygote_lost           --->    ForkWorkers, DismissWorker
    worker_ready, release_early, worker_gone    Dispatch, Grant, Fail
    release_slot, wants_slot
    tick, gpus_changed

Events are methods, named for what happened and given the time where it matters. Each returns the
commands to carry out, in order. Only the supervisor calls them, and carries the commands out.

    Scheduler --> ZygoteLifecycle  which zygotes are up  --> TimeSlicing  who makes room
              --> Slots            which call goes next  --> WaitQueue    who waits
                                                         --> ZygoteTable  facts about zygotes

The rules:

* A call needs a slot and a spare of its zygote. It holds the slot until its worker's process tree
  is gone (`worker_gone`), not just until its result arrives. A small worker that has answered is
  the exception (`release_early`): the next call may run before its exit is reported. At most as
  many such workers may be exiting as there are slots.
* A call for GPUs needs a lease of them (see `gpus`) instead of a slot, and holds it for as long. It
  waits in the GPUs' queue only while its zygote can fork: while the zygote starts, the call keeps
  no device from others.
* Oldest first among the calls whose zygote has a spare; a zygote that starts, or an environment
  that is built, never holds up the calls of others.
* A resident is a worker that gives its slot back (`release_slot`) and stays. Each time it has
  something to do it asks for a slot (`wants_slot`), and waits its turn with the calls.
* Spares are forked ahead: a multiple of how many calls recently ran at once, at most
  ``max_spares``. `tick` dismisses them when a zygote had no call for ``spare_idle_s``.
* Besides the base, at most ``max_environments`` environments may be up. One more is started in
  place of the one that has been idle longest. While none is idle its calls wait, for `TURN_S` at
  most: then the environment that has been up longest takes no call that came after them, and is
  stopped when it is idle. So under a steady load environments take turns. `tick` retires an
  environment that had no call for ``environment_idle_s``.
* A zygote that does not start, or forks nothing, is started again when a call needs it, a limited
  number of times a minute; beyond that, calls for it fail at once with the reason, until the
  minute is over.
* A zygote for which the machine lacks resources is started again by `tick`, however often; its
  calls wait.
* A zygote that was killed from outside, or after it had forked workers, can start. It is started
  again however often that happens: at once at first, then after a pause in which its calls wait,
  until a call was answered in it. Its waiting calls fail only if each start was killed for
  `RESTART_WINDOW_S`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from flashpool.pool.gpus.states import GpuPolicy
from flashpool.pool.gpus.table import GpuTable

from .commands import (
    Command,
    DismissWorker,
    Grant,
    QueueFull,
    RetireZygote,
    SchedulerPolicy,
    ZygoteKey,
)
from .slots import Slots
from .time_slicing import TimeSlicing
from .wait_queue import Wait, WaitQueue
from .zygote_lifecycle import ZygoteLifecycle
from .zygote_table import ZygoteTable

#: `tick` must be called at least this often.
TICK_S: Final = 1.0


class Scheduler:
    """The pool's state: queue, slots, zygotes and their workers."""

    def __init__(self, policy: SchedulerPolicy, gpus: GpuTable | None = None) -> None:
        self.policy = policy
        self.gpus = GpuTable(GpuPolicy()) if gpus is None else gpus
        self._zygote_table = ZygoteTable(policy.max_environments)
        self._wait_queue = WaitQueue(self._zygote_table, self.gpus)
        self._time_slicing = TimeSlicing(self._zygote_table)
        self._slots = Slots(
            policy,
            zygote_table=self._zygote_table,
            wait_queue=self._wait_queue,
            gpus=self.gpus,
            time_slicing=self._time_slicing,
        )
        self._lifecycle = ZygoteLifecycle(
            policy,
            zygote_table=self._zygote_table,
            wait_queue=self._wait_queue,
            slots=self._slots,
            time_slicing=self._time_slicing,
        )
        self._zygote_of: dict[int, ZygoteKey] = {}

    # Calls.

    def check_room(self, gpus: int = 0, beside: int = 0) -> None:
        """Check whether one more call may wait; ``beside`` calls wait elsewhere.

        Raises:
            QueueFull: the queue is at its limit.
        """
        limit = self.policy.queue_limit
        waiting = self.waiting + beside
        if limit is None or waiting < limit:
            return
        if waiting or not self._slots.could_run_now(gpus):
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
        """Add a call, for ``gpus`` GPUs; ``again`` if its worker died before the call began.

        ``beside``: calls that wait elsewhere, or None if the queue's limit does not apply.

        Raises:
            QueueFull: the queue is at its limit; nothing was changed.
        """
        slots, limit, waiting = self._slots, self.policy.queue_limit, self._wait_queue.calls
        if not (again or limit is None or beside is None) and len(waiting) + beside >= limit:
            self.check_room(gpus, beside)
        zygote = self._zygote_table.entries.get(key) or self._zygote_table.entry(key)
        zygote.last_used = now
        if not zygote.up:
            zygote.retiring = False
        somebody_waits = waiting or slots.asking or self._time_slicing.yielding
        if zygote.spares and slots.free > 0 and not gpus and not somebody_waits:
            return [slots.begin(call, zygote, now), *slots.fork(zygote)]
        self._wait_queue.join(call, zygote, now, gpus=gpus, again=again)
        return self._lifecycle.settle(zygote, now)

    def withdrawn(self, call: int) -> bool:
        """Remove a call that was cancelled or timed out; return whether it was still waiting."""
        return self._wait_queue.remove(call) is not None

    # Zygotes.

    def wanted(self, key: ZygoteKey, now: float) -> list[Command]:
        """Keep this zygote running, even if no call needs it yet."""
        zygote = self._zygote_table.entry(key)
        zygote.last_used = now
        zygote.peak = max(zygote.peak, 1)
        return self._lifecycle.start(zygote, now) + self._slots.fork(zygote)

    def zygote_ready(self, key: ZygoteKey, now: float) -> list[Command]:
        """Note that a zygote can fork. If no call needs it any more, it exits."""
        zygote = self._zygote_table.entries.get(key)
        if zygote is None or not zygote.starting or zygote.exiting:
            return [] if zygote is not None and zygote.up else [RetireZygote(key)]
        zygote.up, zygote.starting, zygote.up_since = True, False, now
        self._wait_queue.claim_gpus(zygote)
        return self._lifecycle.settle(zygote, now) + self._lifecycle.start_held_up(now)

    def zygote_lost(
        self,
        key: ZygoteKey,
        reason: str,
        now: float,
        *,
        curable: bool = False,
        killed: bool = False,
        short: bool = False,
    ) -> list[Command]:
        """Note that a zygote died or did not start; `worker_gone` follows for each busy worker.

        ``curable``: another kind of start would succeed; ``short``: the machine lacked resources.
        ``killed``: from outside, which says nothing about whether it can start.
        """
        zygote = self._zygote_table.entries.get(key)
        if zygote is None:
            return []
        failed_start = zygote.starting and not zygote.exiting
        for worker in zygote.spares:
            self._zygote_of.pop(worker, None)
        zygote.lost(reason, now, killed=killed)
        if short:
            zygote.postpone_start(now)
        self._wait_queue.claim_gpus(zygote)
        if zygote.retiring and zygote.needed:
            # Calls arrived while the zygote was exiting: it is needed again.
            zygote.retiring = False
        if zygote.retiring:
            commands = self._lifecycle.retire_if_done(zygote)
        elif failed_start and not (curable or short or (killed and zygote.is_hopeful(now))):
            # A further start would fail in the same way: fail its waiting calls now.
            commands = self._lifecycle.fail_waiting(zygote)
        else:
            commands = self._lifecycle.settle(zygote, now)
        # GPUs that were kept for its calls may be free for others now.
        return commands + self._slots.dispatch(now) + self._lifecycle.start_held_up(now)

    def retire(self, key: ZygoteKey, heir: ZygoteKey, now: float) -> list[Command]:
        """Replace a zygote: its waiting calls go to the heir, and it exits with its last worker."""
        zygote = self._zygote_table.entries.get(key)
        if zygote is None or zygote.retiring:
            return []
        zygote.retiring = True
        after = self._zygote_table.entry(heir)
        self._wait_queue.hand_on(zygote, after)
        return (
            self._lifecycle.dismiss_spares(zygote)
            + self._lifecycle.retire_if_done(zygote)
            + self._lifecycle.settle(after, now)
        )

    def rerouted(self, calls: Iterable[int], key: ZygoteKey, now: float) -> list[Command]:
        """Move calls that wait for a slot to another zygote; they keep their turn."""
        after = self._zygote_table.entry(key)
        self._wait_queue.reroute(calls, after)
        return self._lifecycle.settle(after, now)

    # Workers.

    def worker_ready(self, worker: int, key: ZygoteKey, now: float) -> list[Command]:
        """Add a forked spare that can take a call; dismiss it if it is not needed."""
        zygote = self._zygote_table.entries.get(key)
        if worker in self._zygote_of:
            return []
        if zygote is None or not zygote.up:
            return [DismissWorker(worker)]
        zygote.forking = max(0, zygote.forking - 1)
        if not zygote.proven:
            zygote.works()
        self._zygote_of[worker] = key
        if zygote.retiring:
            done = self._lifecycle.retire_if_done(zygote)
            return [DismissWorker(worker), *done, *self._lifecycle.start_held_up(now)]
        zygote.spares.append(worker)
        return self._slots.dispatch(now) if self._wait_queue.calls else []

    def worker_not_ready(self, key: ZygoteKey, now: float) -> list[Command]:
        """Note that a fork exited before it could take a call."""
        zygote = self._zygote_table.entries.get(key)
        if zygote is None:
            return []
        zygote.forking = max(0, zygote.forking - 1)
        if zygote.retiring:
            return self._lifecycle.retire_if_done(zygote) + self._lifecycle.start_held_up(now)
        return self._lifecycle.settle(zygote, now)

    def release_early(self, worker: int, now: float) -> list[Command]:
        """Note that a small worker has answered and exits; free its slot early."""
        key = self._zygote_of.get(worker)
        zygote = self._zygote_table.entries.get(key) if key is not None else None
        if zygote is None:
            return []
        if zygote.kills:
            zygote.kills.clear()
        if not self._slots.release_early(worker, zygote):
            return []
        somebody_waits = self._wait_queue.calls or self._slots.asking
        return self._slots.dispatch(now) if somebody_waits else []

    def worker_gone(self, worker: int, now: float) -> list[Command]:
        """Note that a worker's whole process tree is gone; free its slot."""
        key = self._zygote_of.pop(worker, None)
        zygote = self._zygote_table.entries.get(key) if key is not None else None
        if zygote is None:
            return []
        slots = self._slots
        slots.gone(worker, zygote, now)
        commands: list[Command] = []
        if self._wait_queue.calls or slots.asking:
            commands = slots.dispatch(now, zygote)
        elif not zygote.retiring:
            commands = slots.fork(zygote)
        if zygote.retiring:
            commands += self._lifecycle.retire_if_done(zygote)
        if self._wait_queue.calls or self._time_slicing.yielding:
            commands += self._lifecycle.start_held_up(now)
        return commands

    def spare_died(self, worker: int) -> None:
        """Offer a dead spare to no call, although its process tree may not be gone."""
        key = self._zygote_of.get(worker)
        zygote = self._zygote_table.entries.get(key) if key is not None else None
        if zygote is not None:
            zygote.discard(worker)

    # Residents.

    def release_slot(self, worker: int, now: float) -> list[Command]:
        """Free the slot of a resident that has nothing to do; it keeps its GPUs."""
        key = self._zygote_of.get(worker)
        zygote = self._zygote_table.entries.get(key) if key is not None else None
        if zygote is None or not self._slots.release_slot(worker, zygote):
            return []
        return self._slots.dispatch(now)

    def wants_slot(self, worker: int, since: float, now: float) -> list[Command]:
        """Ask for a slot for a resident with work since ``since``; with GPUs it needs none."""
        key = self._zygote_of.get(worker)
        zygote = self._zygote_table.entries.get(key) if key is not None else None
        if zygote is None or not self._slots.is_resident(worker):
            return []
        zygote.last_used = now
        return self._slots.dispatch(now) if self._slots.ask_slot(worker, since) else [Grant(worker)]

    def may_go_on(self, worker: int) -> bool:
        """Return whether a resident may keep its slot for its next call: no other call waits."""
        return not self._wait_queue.calls and self._slots.keeps(worker)

    # GPUs.

    def gpus_changed(self, now: float) -> list[Command]:
        """Dispatch calls, because devices became free or were lost."""
        return self._slots.dispatch(now)

    # Time.

    def tick(self, now: float) -> list[Command]:
        """Stop what has not been needed for long. Call this about every `TICK_S`."""
        commands: list[Command] = []
        for zygote in self._zygote_table:
            commands += map(DismissWorker, self._slots.surplus(zygote, now))
        return commands + self._lifecycle.retire_unused(now) + self._lifecycle.start_held_up(now)

    # Environments.

    def retire_idle(self, environment: str, now: float) -> list[Command]:
        """Stop an environment that its owner no longer wants, unless a call uses it."""
        group = self._zygote_table.group(environment)
        if not group.idle:
            return []
        return self._lifecycle.retire_environment(group) + self._lifecycle.start_held_up(now)

    def is_idle(self, environment: str) -> bool:
        """Return whether an environment could be stopped now."""
        return self._zygote_table.group(environment).idle

    def is_kept_by_residents(self, environment: str) -> bool:
        """Return whether an environment could be stopped if it had no residents."""
        return self._zygote_table.group(environment).kept_by_residents

    def kept_by_residents(self) -> list[str]:
        """Return environments that only residents keep running, while calls wait for their room."""
        self._lifecycle.crowded = self._zygote_table.crowded()
        return self._zygote_table.kept_by_residents() if self.crowded else []

    def uses(self, environment: str) -> bool:
        """Return whether an environment has a zygote, or a call that waits for one."""
        return any(key.environment == environment for key in self._zygote_table.entries)

    # Views, for stats and tests.

    @property
    def busy(self) -> int:
        """The number of slots that are held."""
        return self._slots.busy

    @property
    def crowded(self) -> bool:
        """Return whether calls may wait for an environment's room (`kept_by_residents` checks)."""
        return self._lifecycle.crowded

    @property
    def waiting(self) -> int:
        """The number of waiting calls."""
        return len(self._wait_queue.calls)

    def waits(self) -> dict[str, list[Wait]]:
        """Return the waiting calls by what they wait for."""
        return self._wait_queue.waits

    def knows(self, key: ZygoteKey) -> bool:
        """Return whether a zygote runs, or may be started again."""
        return key in self._zygote_table.entries

    def is_up(self, key: ZygoteKey) -> bool:
        """Return whether calls may be sent to a zygote without waiting for a start."""
        zygote = self._zygote_table.entries.get(key)
        return zygote is not None and zygote.can_fork

    def spares(self, key: ZygoteKey) -> int:
        """Return how many spares wait for a call."""
        zygote = self._zygote_table.entries.get(key)
        return len(zygote.spares) if zygote else 0

    def gpus_of(self, worker: int) -> tuple[str, ...]:
        """Return the devices that a worker holds."""
        return self._slots.gpus_of(worker)

    def keys(self) -> Iterable[ZygoteKey]:
        """Return the keys of all known zygotes."""
        return self._zygote_table.entries.keys()
