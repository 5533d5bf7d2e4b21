"""The table of GPUs: leases, the wait queue of claims, and memory that is not freed."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flashpool.pool.gpus.devices import Device, Reading
from flashpool.pool.gpus.states import MIB, GpuChange, GpuLease, GpuPolicy, GpuState
from flashpool.pool.gpus.table import GpuTable

GIB = 1024 * MIB


def device(index: int, *, memory: int | None = 80 * GIB, used: int = 4 * MIB) -> Device:
    return Device(
        uuid=f"GPU-{index}", index=index, name="H100", memory_bytes=memory, used_bytes=used
    )


def table(number: int = 4, *, calls_per_gpu: int = 1, **policy: float) -> GpuTable:
    made = GpuPolicy(calls_per_gpu=calls_per_gpu, **policy)  # type: ignore[arg-type]
    return GpuTable(made, [device(index) for index in range(number)])


class Story:
    """A table with a simulated clock and scripted answers of the driver."""

    def __init__(self, gpus: GpuTable) -> None:
        self.gpus = gpus
        self.now = 100.0
        self.claims = 0
        self.used = {gpu.uuid: gpu.used_bytes for gpu in gpus}

    def claim(self, number: int = 1) -> int:
        self.claims += 1
        self.gpus.claim(self.claims, number, self.now)
        self.now += 0.001
        return self.claims

    def lease(self, number: int = 1) -> GpuLease:
        return self.gpus.take(self.claim(number), self.now)

    def granted(self) -> list[int]:
        return [claim for claim, _uuids in self.gpus.grants()]

    def look(self, seconds: float = 0.0) -> list[GpuChange | None]:
        """Let time pass and read the devices that are due."""
        self.now += seconds
        return [
            self.gpus.read(
                Reading(
                    uuid=look.uuid,
                    used_bytes=self.used[look.uuid],
                    processes=((42, GIB),) if look.processes else None,
                ),
                self.now,
                self.now,
            )
            for look in self.gpus.looks(self.now)
        ]

    def gpu(self, index: int = 0):
        return list(self.gpus)[index]


def test_leases_are_on_different_devices_until_all_are_leased() -> None:
    story = Story(table(4))
    leases = [story.lease() for _ in range(4)]
    assert len({lease.uuids for lease in leases}) == 4
    waits = story.claim()
    assert story.granted() == []
    story.gpus.release(leases[2], story.now)
    story.look()
    assert story.gpus.grants() == [(waits, leases[2].uuids)]


def test_a_lease_of_many_has_as_many_different_devices() -> None:
    assert len(set(Story(table(8)).lease(4).uuids)) == 4
    assert len(set(Story(table(4, calls_per_gpu=3)).lease(4).uuids)) == 4


def test_a_lease_is_released_only_once() -> None:
    story = Story(table())
    lease = story.lease()
    story.gpus.release(lease, story.now)
    with pytest.raises(LookupError, match="released before"):
        story.gpus.release(lease, story.now)


def test_only_granted_claims_can_be_taken() -> None:
    story = Story(table(1))
    story.lease()
    with pytest.raises(LookupError):
        story.gpus.take(story.claim(), story.now)
    assert not story.gpus.withdraw(17)


def test_the_device_with_most_free_memory_comes_first_then_the_least_recently_used() -> None:
    gpus = GpuTable(
        GpuPolicy(), [device(0, used=2 * GIB), device(1), device(2), device(3, used=6 * MIB)]
    )
    story = Story(gpus)
    leases = [story.lease() for _ in range(4)]
    assert [lease.uuids for lease in leases] == [("GPU-1",), ("GPU-2",), ("GPU-3",), ("GPU-0",)]
    for lease in (leases[2], leases[0], leases[1]):
        story.now += 1
        gpus.release(lease, story.now)
    story.look()
    assert [story.lease().uuids for _ in range(3)] == [("GPU-3",), ("GPU-1",), ("GPU-2",)]


def test_shares_are_spread_over_devices_before_they_are_doubled_up() -> None:
    story = Story(table(2, calls_per_gpu=2))
    uuids = [story.lease().uuids[0] for _ in range(4)]
    assert set(uuids[:2]) == set(uuids[2:]) == {"GPU-0", "GPU-1"}
    story.claim()
    assert story.granted() == []


def test_a_large_claim_is_served_before_later_small_ones() -> None:
    story = Story(table(4))
    small = [story.lease() for _ in range(4)]
    large = story.claim(4)
    later = [story.claim() for _ in range(4)]
    for lease in small:
        assert story.granted() == []
        story.gpus.release(lease, story.now)
        story.look()
    assert story.granted() == [large]
    story.gpus.take(large, story.now)
    assert story.granted() == []
    assert story.gpus.waiting == len(later)


def test_devices_that_the_first_claim_does_not_need_go_to_later_ones() -> None:
    story = Story(table(4))
    head, behind = story.claim(3), story.claim(1)
    assert story.granted() == [head, behind]
    story.gpus.take(behind, story.now)
    assert story.granted() == [head], "what the head needs was kept"


def test_a_claim_that_queues_again_keeps_its_place() -> None:
    story = Story(table(1))
    lease = story.lease()
    first, second = story.claim(), story.claim()
    story.gpus.withdraw(first)
    story.gpus.claim(first, 1, 100.0)
    story.gpus.release(lease, story.now)
    story.look()
    assert story.granted() == [first]
    story.gpus.withdraw(first)
    assert story.granted() == [second]


def test_the_number_of_devices_the_first_claim_still_needs() -> None:
    story = Story(table(4))
    assert story.gpus.wanted() == 0
    leases = [story.lease() for _ in range(3)]
    story.claim(3)
    assert story.gpus.wanted() == 2
    story.gpus.release(leases[0], story.now)
    assert story.gpus.wanted() == 1, "one settles, and will be free"
    story.gpus.release(leases[1], story.now)
    assert story.gpus.wanted() == 0


def test_a_device_is_not_leased_before_its_memory_is_freed() -> None:
    story = Story(table(1))
    lease = story.lease()
    story.used["GPU-0"] = 30 * GIB
    story.gpus.release(lease, story.now)
    story.claim()
    assert story.look() == [None]
    assert story.gpu().state is GpuState.SETTLING
    assert story.granted() == []
    story.used["GPU-0"] = 5 * MIB
    assert story.look(0.3) == [GpuChange.FREED]
    assert len(story.granted()) == 1


def test_a_settling_device_is_read_with_growing_intervals() -> None:
    story = Story(table(1))
    lease = story.lease()
    story.used["GPU-0"] = 30 * GIB
    story.gpus.release(lease, story.now)
    gaps = []
    for _ in range(8):
        story.look()
        due = story.gpus.next_look()
        assert due is not None
        gaps.append(round(due - story.now, 3))
        story.now = due
    assert gaps == [0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.25, 0.25]


def test_a_device_whose_memory_is_not_freed_is_quarantined_and_retried() -> None:
    story = Story(table(1))
    lease = story.lease()
    story.used["GPU-0"] = 4 * MIB + GIB
    story.gpus.release(lease, story.now)
    assert story.look() == [None]
    assert story.look(10.1) == [GpuChange.QUARANTINED]
    gpu = story.gpu()
    assert story.gpus.usable == 0
    assert str(gpu.evidence) == (
        "1024 MiB more are in use than before its last call; processes on it: 42 (1024 MiB)"
    )
    waits = []
    for _ in range(9):
        due = story.gpus.next_look()
        assert due is not None
        waits.append(round(due - story.now))
        assert story.look(due - story.now) == [None]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    story.used["GPU-0"] = 4 * MIB
    assert story.look(61) == [GpuChange.RECOVERED]
    assert gpu.evidence is None
    assert story.lease().uuids == ("GPU-0",)


def test_small_leaks_add_up_to_a_quarantine() -> None:
    story = Story(table(1))
    for leaked, state in ((40, GpuState.FREE), (80, GpuState.QUARANTINED)):
        lease = story.lease()
        story.used["GPU-0"] = (4 + leaked) * MIB
        story.gpus.release(lease, story.now)
        story.look()
        story.look(11)
        assert story.gpu().state is state
        story.look(6)  # reading an idle device does not move the baseline to the leak


def test_memory_of_other_programs_on_an_idle_device_is_not_a_leak() -> None:
    story = Story(table(1))
    story.used["GPU-0"] = 20 * GIB
    story.look(6)
    lease = story.lease()
    story.gpus.release(lease, story.now)
    assert story.look() == [GpuChange.FREED]


def test_a_shared_device_is_checked_after_its_last_call() -> None:
    story = Story(table(1, calls_per_gpu=2))
    first, second = story.lease(), story.lease()
    story.used["GPU-0"] = 9 * GIB
    story.gpus.release(first, story.now)
    assert story.gpu().state is GpuState.FREE
    third = story.lease()
    story.gpus.release(second, story.now)
    story.gpus.release(third, story.now)
    assert story.gpu().state is GpuState.SETTLING


def test_a_reading_requested_before_a_call_is_ignored_after_it() -> None:
    story = Story(table(1))
    asked = story.now
    story.gpus.looks(asked)
    story.now += 1
    lease = story.lease()
    story.used["GPU-0"] = 30 * GIB
    story.gpus.release(lease, story.now)
    stale = Reading(uuid="GPU-0", used_bytes=4 * MIB)
    assert story.gpus.read(stale, asked, story.now) is None
    assert story.gpu().state is GpuState.SETTLING
    assert story.look() == [None]


def test_a_device_that_cannot_be_read_is_quarantined_until_it_can() -> None:
    story = Story(table(2))
    lost = Reading(uuid="GPU-0", used_bytes=None, failure="GPU is lost")
    assert story.gpus.read(lost, story.now, story.now) is GpuChange.QUARANTINED
    assert "it cannot be read: GPU is lost" in str(story.gpu().evidence)
    assert story.lease().uuids == ("GPU-1",)
    story.used["GPU-0"] = 3 * GIB
    assert GpuChange.RECOVERED in story.look(1.1)


def test_a_device_in_use_that_cannot_be_read_is_left_to_its_call() -> None:
    story = Story(table(1))
    lease = story.lease()
    lost = Reading(uuid="GPU-0", used_bytes=None, failure="GPU is lost")
    assert story.gpus.read(lost, story.now, story.now) is None
    story.gpus.release(lease, story.now)
    assert story.gpus.read(lost, story.now, story.now) is None, "it has its time to come back"
    assert story.gpus.read(lost, story.now + 11, story.now + 11) is GpuChange.QUARANTINED


def test_a_device_without_memory_figures_is_free_at_once() -> None:
    story = Story(GpuTable(GpuPolicy(), [device(0, memory=None)]))
    story.gpus.release(story.lease(), story.now)
    assert story.gpus.next_look() is None
    assert story.lease().uuids == ("GPU-0",)


def test_a_claim_for_more_than_the_usable_devices_does_not_block_others() -> None:
    story = Story(table(2))
    lost = Reading(uuid="GPU-0", used_bytes=None, failure="GPU is lost")
    story.gpus.read(lost, story.now, story.now)
    large, small = story.claim(2), story.claim(1)
    assert story.granted() == [small]
    story.look(1.1)
    assert story.granted() == [large]


class Any4(RuleBasedStateMachine):
    """No device is overbooked or leased before its memory is freed; no claim is passed over."""

    PER_GPU = 2

    def __init__(self) -> None:
        super().__init__()
        self.story = Story(table(4, calls_per_gpu=self.PER_GPU))
        self.queue: dict[int, int] = {}
        self.leases: dict[int, GpuLease] = {}

    @rule(number=st.integers(1, 4))
    def claim(self, number: int) -> None:
        self.queue[self.story.claim(number)] = number

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(sorted(self.queue)))
        assert self.story.gpus.withdraw(claim)
        del self.queue[claim]

    @precondition(lambda self: self.story.gpus.grants())
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        gpus = self.story.gpus
        grants = gpus.grants()
        index = data.draw(st.integers(0, len(grants) - 1))
        claim, uuids = grants[index]
        for uuid in uuids:
            gpu = next(one for one in gpus if one.uuid == uuid)
            assert gpu.state is GpuState.FREE
        lease = gpus.take(claim, self.story.now)
        assert lease.uuids == uuids
        assert len(set(uuids)) == self.queue.pop(claim)
        self.leases[lease.id] = lease
        earlier = [other for other, _uuids in grants[:index]]
        still = self.story.granted()
        assert [one for one in still if one in earlier] == earlier, "taken from those before it"

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), left=st.sampled_from([0, 0, 0, 3 * GIB]))
    def release(self, data: st.DataObject, left: int) -> None:
        lease = self.leases.pop(data.draw(st.sampled_from(sorted(self.leases))))
        self.story.gpus.release(lease, self.story.now)
        for uuid in lease.uuids:
            self.story.used[uuid] = 4 * MIB + left

    @rule(seconds=st.sampled_from([0.0, 0.01, 1.0, 20.0]))
    def look(self, seconds: float) -> None:
        self.story.look(seconds)

    @rule(index=st.integers(0, 3), used=st.sampled_from([0, 4 * MIB]))
    def clean(self, index: int, used: int) -> None:
        self.story.used[f"GPU-{index}"] = used

    @rule(index=st.integers(0, 3))
    def lose(self, index: int) -> None:
        lost = Reading(uuid=f"GPU-{index}", used_bytes=None, failure="lost")
        self.story.gpus.read(lost, self.story.now, self.story.now)

    @invariant()
    def shares_are_those_of_the_leases(self) -> None:
        for gpu in self.story.gpus:
            out = sum(gpu.uuid in lease.uuids for lease in self.leases.values())
            assert gpu.shares_out == out <= self.PER_GPU
            assert gpu.state is GpuState.FREE or not out
            assert (gpu.evidence is not None) == (gpu.state is GpuState.QUARANTINED)

    @invariant()
    def the_first_that_can_be_served_is_served_first(self) -> None:
        gpus = self.story.gpus
        possible = [claim for claim, number in self.queue.items() if number <= gpus.usable]
        free = sum(g.state is GpuState.FREE and g.shares_out < self.PER_GPU for g in gpus)
        granted = self.story.granted()
        if possible and free >= self.queue[possible[0]]:
            assert granted[0] == possible[0]
        assert granted == sorted(granted)
        assert gpus.waiting == len(self.queue)

    def teardown(self) -> None:
        """Once all leases are released and memory is freed, every claim that fits is granted."""
        story, gpus = self.story, self.story.gpus
        for lease in self.leases.values():
            gpus.release(lease, story.now)
        for uuid in story.used:
            story.used[uuid] = 0
        for _ in range(400):
            story.look(61.0)
            for claim in story.granted()[:1]:
                gpus.release(gpus.take(claim, story.now), story.now)
        assert gpus.usable == 4
        assert gpus.waiting == 0 or len(self.queue) > 200


TestAny = Any4.TestCase
TestAny.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
