"""Decides which call gets a slot, a GPU or a spare next, and records their holders.

    a call that waits + a spare of its zygote + a slot     --> Dispatch
    a call for GPUs   + a spare of its zygote + its GPUs   --> Dispatch
    a resident that asks                      + a slot     --> Grant
    a zygote that has fewer spares than it could use       --> ForkWorkers

Oldest first among the calls whose zygote has a spare. A worker holds its slot or GPUs until its
process tree is gone, except a small worker that has answered: the next call begins while it exits,
for as many workers at once as there are slots. A resident releases its slot whenever it has nothing
to do, and keeps its GPUs.
"""

from __future__ import annotations

from flashpool.pool.gpus.states import GpuLease
from flashpool.pool.gpus.table import GpuTable

from .commands import Command, Dispatch, ForkWorkers, Grant, SchedulerPolicy
from .time_slicing import TimeSlicing
from .wait_queue import WaitQueue
from .zygote_table import ZygoteRow, ZygoteTable


class Slots:
    """The slots and GPUs of a pool, and the workers that hold them."""

    def __init__(
        self,
        policy: SchedulerPolicy,
        *,
        zygote_table: ZygoteTable,
        wait_queue: WaitQueue,
        gpus: GpuTable,
        time_slicing: TimeSlicing,
    ) -> None:
        self._policy = policy
        self._zygote_table = zygote_table
        self._wait_queue = wait_queue
        self._gpus = gpus
        self._time_slicing = time_slicing
        #: The number of free slots.
        self.free = policy.slots
        #: Workers that hold a slot.
        self._holding: set[int] = set()
        #: Workers that held a slot, have answered, and whose process trees are not gone.
        self._exiting: set[int] = set()
        self._leases: dict[int, GpuLease] = {}
        #: Residents; and those of them that want a slot, with the time since when.
        self._residents: set[int] = set()
        self.asking: dict[int, float] = {}

    @property
    def busy(self) -> int:
        """The number of slots that are held."""
        return self._policy.slots - self.free

    def could_run_now(self, gpus: int) -> bool:
        """Return whether one more call could run if its zygote were ready."""
        return self._gpus.has(gpus) if gpus else self.free > 0

    # Giving out.

    def dispatch(self, now: float, settling: ZygoteRow | None = None) -> list[Command]:
        """Pair waiting calls with spares while there are GPUs and slots, oldest call first.

        Zygotes fork as needed for that; ``settling`` is a zygote that may have to fork in any case.
        """
        touched = [settling] if settling is not None else []
        # Under load, no slot is free at most events.
        if not (self._wait_queue.calls or self.asking) or not (self.free > 0 or self._gpus.queue):
            return self.fork(settling) if settling is not None else []
        commands = self._dispatch_to_gpus(touched, now) if self._gpus.queue else []
        while (self._wait_queue.calls or self.asking) and self.free > 0:
            zygote = self._oldest_with_spare() if self._wait_queue.calls else None
            if self.asking and (asking := self._longest_asking(zygote)) is not None:
                commands.append(self._grant(asking))
                continue
            if zygote is None:
                break
            call = next(iter(zygote.waiting))
            self._wait_queue.remove(call)
            commands.append(self.begin(call, zygote, now))
            if zygote not in touched:
                touched.append(zygote)
        if self._wait_queue.calls and (self.free > 0 or self._gpus.queue):
            # A slot or GPU is free for calls whose zygotes have not forked because there was none.
            touched = [
                zygote for zygote in self._zygote_table if zygote.needed or zygote in touched
            ]
        for zygote in touched:
            commands += self.fork(zygote)
        return commands

    def _dispatch_to_gpus(self, touched: list[ZygoteRow], now: float) -> list[Command]:
        commands: list[Command] = []
        for call, _uuids in self._gpus.grants():
            zygote = self._wait_queue.waits_for(call)
            if not zygote.spares or self._time_slicing.yields(zygote, zygote.for_gpus[call][0]):
                continue  # its devices are kept: a fork is under way, or its environment yields
            lease = self._gpus.take(call, now)
            self._wait_queue.remove(call)
            commands.append(self.begin(call, zygote, now, lease))
            if zygote not in touched:
                touched.append(zygote)
        return commands

    def begin(
        self, call: int, zygote: ZygoteRow, now: float, lease: GpuLease | None = None
    ) -> Dispatch:
        """Give a call to a spare, with a lease of GPUs or else a free slot."""
        zygote.busy += 1
        zygote.peak = max(zygote.peak, zygote.busy - zygote.answered)
        zygote.last_used = now
        worker = zygote.spares.popleft()
        if lease is not None:
            self._leases[worker] = lease
            return Dispatch(call, worker, lease.uuids)
        self._holding.add(worker)
        self.free -= 1
        return Dispatch(call, worker)

    def _oldest_with_spare(self) -> ZygoteRow | None:
        entries = self._zygote_table.entries
        if len(entries) == 1:
            (zygote,) = entries.values()
            return zygote if zygote.waiting and zygote.spares else None
        able = [z for z in entries.values() if z.waiting and z.spares]
        if self._time_slicing.yielding:
            able = [
                z for z in able if not self._time_slicing.yields(z, next(iter(z.waiting.values())))
            ]
        return min(able, key=lambda zygote: next(iter(zygote.waiting.values())), default=None)

    def _longest_asking(self, rival: ZygoteRow | None) -> int | None:
        """Return the resident that has asked longest, if longer than the rival's oldest call."""
        worker = min(self.asking, key=self.asking.__getitem__)
        return None if rival and rival.since < self.asking[worker] else worker

    def _grant(self, worker: int) -> Command:
        del self.asking[worker]
        self._holding.add(worker)
        self.free -= 1
        return Grant(worker)

    # Asking and releasing.

    def release_early(self, worker: int, zygote: ZygoteRow) -> bool:
        """Note that a small worker has answered; return whether that freed a slot.

        The number of such workers is limited, because what they started may exit more slowly than
        calls arrive.
        """
        if worker not in self._holding or len(self._exiting) >= self._policy.slots:
            return False
        self._holding.remove(worker)
        self._exiting.add(worker)
        self.free += 1
        zygote.answered += 1
        return True

    def ask_slot(self, worker: int, since: float) -> bool:
        """Ask for a slot for a resident; return False if it has GPUs or a slot already."""
        if worker in self._leases or worker in self._holding:
            return False
        self.asking[worker] = since
        return True

    def release_slot(self, worker: int, zygote: ZygoteRow) -> bool:
        """Note that a resident has nothing to do; return whether that freed a slot."""
        if not (worker in self._holding or worker in self._leases):
            return False
        if worker not in self._residents:
            self._residents.add(worker)
            zygote.busy -= 1
            zygote.residents += 1
        if worker not in self._holding:
            return False
        self._holding.remove(worker)
        self.free += 1
        return True

    def is_resident(self, worker: int) -> bool:
        """Return whether a worker stays between its calls."""
        return worker in self._residents

    def keeps(self, worker: int) -> bool:
        """Return whether a worker is a resident and no other resident waits for a slot."""
        return worker in self._residents and not self.asking

    def gpus_of(self, worker: int) -> tuple[str, ...]:
        """Return the devices that a worker holds."""
        lease = self._leases.get(worker)
        return lease.uuids if lease is not None else ()

    def gone(self, worker: int, zygote: ZygoteRow, now: float) -> None:
        """Free what a worker held whose process tree is gone."""
        if lease := self._leases.pop(worker, None):
            self._gpus.release(lease, now)
        elif worker in self._holding:
            self._holding.remove(worker)
            self.free += 1
        elif worker in self._exiting:
            self._exiting.remove(worker)
            zygote.answered -= 1
        elif worker not in self._residents:
            zygote.discard(worker)
            return
        if worker in self._residents:
            self._residents.remove(worker)
            self.asking.pop(worker, None)
            zygote.residents -= 1
        else:
            zygote.busy -= 1

    # Spares.

    def fork(self, zygote: ZygoteRow) -> list[Command]:
        """Have a zygote fork as many spares as it could use."""
        if not zygote.up or zygote.retiring:
            return []
        have = len(zygote.spares) + zygote.forking
        able = self._could_run(zygote) if zygote.waiting or zygote.for_gpus else 0
        wanted = self._spares_wanted(zygote, able)
        # Several at a time, if several are kept: a zygote forks them more cheaply together.
        if have >= wanted or (have > wanted // 2 and have >= able):
            return []
        missing = wanted - have
        zygote.forking += missing
        return [ForkWorkers(zygote.key, missing)]

    def surplus(self, zygote: ZygoteRow, now: float) -> list[int]:
        """Return spares that were not needed recently; call it about every second."""
        idle = now - zygote.last_used
        zygote.peak = max(
            zygote.busy - zygote.answered,
            zygote.peak - 1,
            0 if idle > self._policy.spare_idle_s else 1,
        )
        number = len(zygote.spares) - self._spares_wanted(zygote, self._could_run(zygote))
        return [zygote.spares.popleft() for _ in range(number)]

    def _spares_wanted(self, zygote: ZygoteRow, able: int) -> int:
        """Return a multiple of the recent peak of running calls, or one per call that could run
        now.

        Two for a single caller, whose next call comes before another spare is forked.
        """
        ahead = 4 * zygote.peak if zygote.peak > 1 else 2 * zygote.peak
        return max(able, min(ahead, self._policy.max_spares))

    def _could_run(self, zygote: ZygoteRow) -> int:
        able = min(len(zygote.waiting), self.free)
        if not zygote.for_gpus:
            return able
        return able + sum(call in zygote.for_gpus for call, _uuids in self._gpus.grants())
