"""Decides which call gets which GPUs. Contains no clock, descriptor or driver.

    claim, withdraw, take, release   --->   grants, wanted   (for the scheduler)
    read                             --->   looks, next_look (for the reader of the driver)

A device has as many shares as calls may be on it at once. A lease is one share on each of several
devices, as many as its call asked for; `take` issues the lease, and `release` returns it, once.

    free --take--> (shares out) --release of the last--> settling --memory is back--> free
                                                            |                          ^
                                                            `--not within a bound--> quarantined

Settling: a driver frees the memory of a dead process some time after its end, and sometimes never.
The next call must not meet that. A device is free again when its used memory is back at its level,
within a tolerance. If that takes too long the device is quarantined, with the evidence; it is read
again at growing intervals, and becomes free when its memory is back. While calls are left on a
device, memory cannot be attributed: the device is judged when the last of them has ended.

The level is the memory in use without calls of this pool. Memory that a call leaves within the
tolerance does not raise the level, so many small leaks add up to a large one. Memory that other
programs allocate or free while a device is idle changes the level.

The rules of who is next:

* Claims are served strictly in the order of arrival. Shares that an earlier claim could use are
  kept for it, also while it cannot be granted yet. So a stream of small claims never starves a
  large one: each device that becomes free is kept until the large claim has all its devices.
* A claim for more devices than are out of quarantine is passed over meanwhile, and is first again
  when they are back.
* Devices are chosen by the fewest shares out, then by free memory, then the least recently used.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from typing import Final

from .devices import Device, Reading
from .states import Evidence, Gpu, GpuChange, GpuLease, GpuPolicy, GpuState, Look

#: Seconds between two readings of a settling device: at first, and at most.
_SETTLE_LOOK_S: Final = 0.004
_SETTLE_LOOK_MOST_S: Final = 0.25


class GpuTable:
    """Devices, their leases, and the wait queue of claims for them."""

    def __init__(self, policy: GpuPolicy, devices: Iterable[Device] = ()) -> None:
        self.policy = policy
        self._gpus: dict[str, Gpu] = {}
        #: In the order of arrival; `_arrivals` finds the place of a claim.
        self.queue: list[tuple[float, int, int]] = []
        self._arrivals: dict[int, tuple[float, int, int]] = {}
        self._leases: dict[int, GpuLease] = {}
        self._next_lease = 1
        self.add(devices)

    def add(self, devices: Iterable[Device]) -> None:
        """Allow these devices to be leased from now on."""
        for device in devices:
            used = device.used_bytes
            gpu = Gpu(device, used_bytes=used, level_bytes=used)
            self._gpus.setdefault(device.uuid, gpu)

    # The wait queue of claims.

    def claim(self, claim: int, number: int, arrived: float) -> None:
        """Wait for ``number`` devices, behind all claims that arrived earlier.

        ``claim`` is a number that the caller chooses; claims of the same instant are served in its
        order.
        """
        if claim in self._arrivals:
            return
        place = (arrived, claim, number)
        self._arrivals[claim] = place
        bisect.insort(self.queue, place)

    def has(self, number: int) -> bool:
        """Return whether ``number`` devices could be taken at once: free, and no claim waits."""
        return not self.queue and sum(map(self._has_share, self._gpus.values())) >= number

    def withdraw(self, claim: int) -> bool:
        """Remove a claim from the queue; return whether it was there."""
        place = self._arrivals.pop(claim, None)
        if place is None:
            return False
        del self.queue[bisect.bisect_left(self.queue, place)]
        return True

    def grants(self) -> list[tuple[int, tuple[str, ...]]]:
        """Return the claims that can be taken now, in order, with the devices of each.

        They can be taken in any order: the devices of each are reserved for it.
        """
        if not self.queue:
            return []
        free = {
            gpu.uuid: self.shares_left(gpu) for gpu in self._gpus.values() if self._has_share(gpu)
        }
        found: list[tuple[int, tuple[str, ...]]] = []
        usable = self.usable
        for _arrived, claim, number in self.queue:
            if not free:
                break
            if number > usable:
                continue
            chosen = self._choose(free, number)
            if len(chosen) == number:
                found.append((claim, chosen))
            _take_shares(free, chosen)
        return found

    def take(self, claim: int, now: float) -> GpuLease:
        """Return the lease of a claim that `grants` lists, and remove the claim from the queue.

        Raises:
            LookupError: the claim is not among the grants.
        """
        uuids = dict(self.grants()).get(claim)
        if uuids is None:
            raise LookupError(f"claim {claim} cannot be granted now")
        self.withdraw(claim)
        lease = GpuLease(id=self._next_lease, uuids=uuids)
        self._next_lease += 1
        self._leases[lease.id] = lease
        for uuid in uuids:
            gpu = self._gpus[uuid]
            gpu.shares_out += 1
            gpu.last_used = gpu.changed_at = now
        return lease

    def release(self, lease: GpuLease, now: float) -> None:
        """Return a lease to the table: no process of its call is left.

        Raises:
            LookupError: the lease was released before.
        """
        if self._leases.pop(lease.id, None) is None:
            raise LookupError(f"{lease} was released before")
        for uuid in lease.uuids:
            gpu = self._gpus[uuid]
            gpu.shares_out -= 1
            gpu.last_used = gpu.changed_at = now
            if not gpu.shares_out and gpu.measurable and gpu.state is GpuState.FREE:
                gpu.state = GpuState.SETTLING
                gpu.deadline = now + self.policy.settle_s
                gpu.next_look, gpu.looks = now, 0

    def wanted(self) -> int:
        """Return how many more devices the first claim needs than are free or settling.

        More than 0: leases that are not needed should be returned.
        """
        usable = self.usable
        number = next((number for _at, _claim, number in self.queue if number <= usable), 0)
        coming = sum(
            self._has_share(gpu) or gpu.state is GpuState.SETTLING for gpu in self._gpus.values()
        )
        return max(0, number - coming)

    # Reading the driver.

    def looks(self, now: float) -> list[Look]:
        """Return the devices to be read now; answer with `read` for each."""
        due = [gpu for gpu in self._gpus.values() if self._watched(gpu) and gpu.next_look <= now]
        for gpu in due:
            # `read` sets the next time; until the answer, the device is not due again.
            gpu.next_look = now + self.policy.retry_most_s
        return [Look(uuid=gpu.uuid, processes=self._is_suspect(gpu, now)) for gpu in due]

    def next_look(self) -> float | None:
        """Return when a device is next due to be read."""
        return min(
            (gpu.next_look for gpu in self._gpus.values() if self._watched(gpu)), default=None
        )

    def read(self, reading: Reading, looked_at: float, now: float) -> GpuChange | None:
        """Use a reading that was asked for at ``looked_at`` and arrived ``now``."""
        gpu = self._gpus[reading.uuid]
        if looked_at < gpu.changed_at:
            # The device was read before a call had it, and the answer arrived after the call's end:
            # it says nothing about its memory now.
            gpu.next_look = min(gpu.next_look, now + self.policy.idle_look_s)
            return None
        gpu.looks += 1
        if reading.used_bytes is not None:
            gpu.used_bytes = reading.used_bytes
        if gpu.state is GpuState.FREE:
            return self._read_free(gpu, reading, now)
        if reading.used_bytes is not None and self._is_back(gpu, reading.used_bytes):
            return self._back(gpu, now)
        if gpu.state is GpuState.SETTLING and now < gpu.deadline:
            gpu.next_look = min(now + _backed_off(gpu.looks), gpu.deadline)
            return None
        return self._quarantine(gpu, reading, now)

    # Views.

    def __len__(self) -> int:
        return len(self._gpus)

    def __getitem__(self, uuid: str) -> Gpu:
        return self._gpus[uuid]

    def __iter__(self) -> Iterator[Gpu]:
        return iter(self._gpus.values())

    def shares_left(self, gpu: Gpu) -> int:
        """Return how many more calls could be put on a device now."""
        return self.policy.calls_per_gpu - gpu.shares_out if self._has_share(gpu) else 0

    def has_share(self, uuid: str) -> bool:
        """Return whether a call could be put on this device now."""
        return self._has_share(self._gpus[uuid])

    @property
    def usable(self) -> int:
        """The number of devices that are not quarantined."""
        return sum(gpu.state is not GpuState.QUARANTINED for gpu in self._gpus.values())

    @property
    def waiting(self) -> int:
        """The number of waiting claims."""
        return len(self.queue)

    @property
    def leases(self) -> int:
        """The number of leases that are out."""
        return len(self._leases)

    # Decisions.

    def _has_share(self, gpu: Gpu) -> bool:
        return gpu.state is GpuState.FREE and gpu.shares_out < self.policy.calls_per_gpu

    def _choose(self, free: dict[str, int], number: int) -> tuple[str, ...]:
        """Return the ``number`` best devices, or fewer, in the order of the bus."""
        best = sorted(free, key=lambda uuid: self._rank(uuid, free[uuid]))[:number]
        return tuple(uuid for uuid in free if uuid in best)

    def _rank(self, uuid: str, shares: int) -> tuple[int, int, float]:
        gpu = self._gpus[uuid]
        # A few pages more or less are no reason to prefer a device.
        free = gpu.free_bytes // max(1, self.policy.tolerance_bytes)
        return -shares, -free, gpu.last_used

    def _watched(self, gpu: Gpu) -> bool:
        return gpu.measurable and (gpu.state is not GpuState.FREE or self._has_share(gpu))

    def _is_suspect(self, gpu: Gpu, now: float) -> bool:
        settling_for = now - (gpu.deadline - self.policy.settle_s)
        return gpu.state is GpuState.QUARANTINED or (
            gpu.state is GpuState.SETTLING and settling_for > self.policy.settle_s / 2
        )

    def _read_free(self, gpu: Gpu, reading: Reading, now: float) -> GpuChange | None:
        gpu.next_look = now + self.policy.idle_look_s
        if reading.used_bytes is not None and not gpu.shares_out:
            self._follow(gpu, reading.used_bytes)
        if reading.used_bytes is not None or gpu.shares_out:
            return None
        # No call uses the device, and it cannot be read: do not risk a call on it.
        gpu.level_bytes = None
        return self._quarantine(gpu, reading, now)

    def _follow(self, gpu: Gpu, used: int) -> None:
        """Update the level: memory that came or went on an idle device is not a call's."""
        level = gpu.level_bytes
        if level is None or used < level or used > level + self.policy.tolerance_bytes:
            gpu.level_bytes = used

    def _is_back(self, gpu: Gpu, used: int) -> bool:
        return gpu.level_bytes is None or used <= gpu.level_bytes + self.policy.tolerance_bytes

    def _back(self, gpu: Gpu, now: float) -> GpuChange:
        was, gpu.state = gpu.state, GpuState.FREE
        used = gpu.used_bytes
        gpu.level_bytes = used if gpu.level_bytes is None else min(gpu.level_bytes, used)
        gpu.evidence = gpu.quarantined_at = None
        gpu.next_look = now + self.policy.idle_look_s
        return GpuChange.FREED if was is GpuState.SETTLING else GpuChange.RECOVERED

    def _quarantine(self, gpu: Gpu, reading: Reading, now: float) -> GpuChange | None:
        first = gpu.state is not GpuState.QUARANTINED
        if first:
            gpu.state, gpu.quarantined_at, gpu.looks = GpuState.QUARANTINED, now, 0
        gpu.evidence = Evidence(
            level_bytes=gpu.level_bytes or 0,
            used_bytes=reading.used_bytes,
            processes=reading.processes or (),
            failure=reading.failure,
        )
        # The exponent is bounded: a device may be in quarantine for days.
        interval = self.policy.retry_s * float(2 ** min(gpu.looks, 16))
        gpu.next_look = now + min(interval, self.policy.retry_most_s)
        return GpuChange.QUARANTINED if first else None


def _backed_off(looks: int) -> float:
    return min(_SETTLE_LOOK_S * float(2 ** min(looks - 1, 16)), _SETTLE_LOOK_MOST_S)


def _take_shares(free: dict[str, int], uuids: tuple[str, ...]) -> None:
    for uuid in uuids:
        free[uuid] -= 1
        if not free[uuid]:
            del free[uuid]
