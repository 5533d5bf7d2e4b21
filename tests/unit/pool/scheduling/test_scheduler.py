"""The scheduler against a world that carries out its commands in any order."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flashpool.pool.gpus.devices import Device
from flashpool.pool.gpus.states import GpuPolicy
from flashpool.pool.gpus.table import GpuTable
from flashpool.pool.scheduling.commands import (
    DismissWorker,
    Dispatch,
    Fail,
    ForkWorkers,
    Grant,
    QueueFull,
    RetireZygote,
    SchedulerPolicy,
    StartZygote,
    ZygoteKey,
)
from flashpool.pool.scheduling.scheduler import Scheduler
from flashpool.pool.scheduling.zygote_table import RESTART_LIMIT, RESTART_WINDOW_S

BASE = ZygoteKey("base")
OTHER, THIRD = ZygoteKey("other"), ZygoteKey("third")
KEYS = [BASE, ZygoteKey("base", 1), OTHER, ZygoteKey("other", 1), THIRD]
POLICY = SchedulerPolicy(
    slots=2,
    queue_limit=4,
    max_spares=3,
    spare_idle_s=10,
    max_environments=1,
    environment_idle_s=20,
)


class World(RuleBasedStateMachine):
    """Zygotes start, fail, fork and die; workers take calls and go; time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(POLICY, gpus(2))
        self.now = 0.0
        self.call_ids = itertools.count()
        self.worker_ids = itertools.count()
        self.starting: set[ZygoteKey] = set()
        self.up: set[ZygoteKey] = set()
        self.forks: list[ZygoteKey] = []
        self.spares: dict[int, ZygoteKey] = {}
        self.keys: dict[int, ZygoteKey] = {}
        self.exiting: dict[int, ZygoteKey] = {}
        self.running: dict[int, int] = {}
        self.waiting: dict[int, ZygoteKey] = {}
        #: The number of GPUs of each call for GPUs; the devices of each worker that has some.
        self.for_gpus: dict[int, int] = {}
        self.devices: dict[int, tuple[str, ...]] = {}
        self.ended: set[int] = set()
        #: Zygotes replaced by another profile, which get no more calls.
        self.retiring: set[ZygoteKey] = set()
        #: Workers that have answered and no longer hold a slot.
        self.answered: set[int] = set()
        #: Residents without a slot, and those among them that ask for one.
        self.resting: set[int] = set()
        self.asking: set[int] = set()
        #: Zygotes that were told to exit and are not gone yet.
        self.going: set[ZygoteKey] = set()

    def room_taken(self) -> set[str]:
        return {key.environment for key in self.up | self.starting} - {"base"}

    def do(self, commands) -> None:
        for command in commands:
            if isinstance(command, StartZygote):
                assert command.key not in self.retiring & set(self.scheduler.keys())
                assert command.key not in self.up | self.starting | self.going
                self.starting.add(command.key)
                assert len(self.room_taken()) <= POLICY.max_environments
            elif isinstance(command, ForkWorkers):
                assert command.key in self.up
                assert command.number > 0
                self.forks += [command.key] * command.number
            elif isinstance(command, Dispatch):
                assert command.call in self.waiting, "a call is dispatched once, while it waits"
                assert self.spares.pop(command.worker) == self.waiting.pop(command.call)
                self.running[command.worker] = command.call
                number = self.for_gpus.get(command.call, 0)
                assert len(set(command.gpus)) == number
                if number:
                    self.devices[command.worker] = command.gpus
                assert self.keys[command.worker] in self.up
            elif isinstance(command, Grant):
                self.asking.remove(command.worker)
                self.resting.remove(command.worker)
                self.running[command.worker] = -1
            elif isinstance(command, DismissWorker):
                self.exiting[command.worker] = self.spares.pop(command.worker)
            elif isinstance(command, Fail):
                del self.waiting[command.call]
                self.ended.add(command.call)
            elif isinstance(command, RetireZygote):
                assert command.key not in self.running_keys(), "a call runs there"
                (self.up if command.key in self.up else self.starting).remove(command.key)
                self.going.add(command.key)

    def running_keys(self) -> set[ZygoteKey]:
        return {self.keys[worker] for worker in (*self.running, *self.resting)}

    @precondition(lambda self: self.going)
    @rule(data=st.data())
    def retired_zygote_is_gone(self, data) -> None:
        self._gone(data.draw(st.sampled_from(sorted(self.going))))

    def _gone(self, key: ZygoteKey) -> None:
        self.going.remove(key)
        dismissed = [w for w, k in self.exiting.items() if k == key]
        self.do(self.scheduler.zygote_lost(key, "retired", self.now))
        for worker in dismissed:
            del self.exiting[worker]
            self.do(self.scheduler.worker_gone(worker, self.now))

    @rule(name=st.sampled_from(["other", "third"]))
    def retire_environment(self, name) -> None:
        self.do(self.scheduler.retire_idle(name, self.now))

    @rule(key=st.sampled_from(KEYS), number=st.sampled_from([0, 0, 1, 2]))
    def submit(self, key, number) -> None:
        self.retiring &= set(self.scheduler.keys())
        if key in self.retiring:
            return
        call = next(self.call_ids)
        self.waiting[call] = key
        if number:
            self.for_gpus[call] = number
        full = self.scheduler.waiting >= POLICY.queue_limit
        try:
            commands = self.scheduler.submitted(call, key, self.now, gpus=number)
        except QueueFull:
            assert full
            del self.waiting[call]
            return
        self.do(commands)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data) -> None:
        call = data.draw(st.sampled_from(sorted(self.waiting)))
        assert self.scheduler.withdrawn(call)
        del self.waiting[call]
        assert not self.scheduler.withdrawn(call), "only once"
        self.do(self.scheduler.gpus_changed(self.now))

    @precondition(lambda self: self.starting)
    @rule(data=st.data(), comes_up=st.booleans(), curable=st.booleans(), killed=st.booleans())
    def start_ends(self, data, comes_up, curable, killed) -> None:
        key = data.draw(st.sampled_from(sorted(self.starting)))
        self.starting.remove(key)
        if comes_up:
            self.up.add(key)
            self.do(self.scheduler.zygote_ready(key, self.now))
            return
        self.do(self.scheduler.zygote_lost(key, "broken", self.now, curable=curable, killed=killed))
        if not (curable or killed):
            assert key not in self.waiting.values(), "a failed start ends who waits for it"

    @precondition(lambda self: self.up)
    @rule(data=st.data())
    def zygote_dies(self, data) -> None:
        key = data.draw(st.sampled_from(sorted(self.up)))
        self.up.remove(key)
        self.forks = [k for k in self.forks if k != key]
        for spare in [w for w, k in self.spares.items() if k == key]:
            del self.spares[spare]
        lost = [w for w, k in self.exiting.items() if k == key]
        self.do(self.scheduler.zygote_lost(key, "killed", self.now))
        for worker in lost:
            del self.exiting[worker]
            self.do(self.scheduler.worker_gone(worker, self.now))

    @precondition(lambda self: self.forks)
    @rule(lives=st.booleans())
    def fork_ends(self, lives) -> None:
        key = self.forks.pop(0)
        if not lives:
            self.do(self.scheduler.worker_not_ready(key, self.now))
            return
        worker = next(self.worker_ids)
        self.spares[worker] = self.keys[worker] = key
        self.do(self.scheduler.worker_ready(worker, key, self.now))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def call_ends(self, data) -> None:
        worker = data.draw(st.sampled_from(sorted(self.running)))
        self._end(worker)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def call_answers(self, data) -> None:
        worker = data.draw(st.sampled_from(sorted(self.running)))
        if self.running[worker] < 0 or worker in self.answered:
            return
        if worker not in self.devices and len(self.answered) < POLICY.slots:
            self.answered.add(worker)
        self.do(self.scheduler.release_early(worker, self.now))

    def _end(self, worker: int) -> None:
        self.answered.discard(worker)
        self.ended.add(self.running.pop(worker))
        self.devices.pop(worker, None)
        self.do(self.scheduler.worker_gone(worker, self.now))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def resident_rests(self, data) -> None:
        worker = data.draw(st.sampled_from(sorted(self.running)))
        if worker in self.answered:
            return
        self.ended.add(self.running.pop(worker))
        self.resting.add(worker)
        self.do(self.scheduler.release_slot(worker, self.now))

    @precondition(lambda self: self.resting - self.asking)
    @rule(data=st.data())
    def resident_wants_a_slot(self, data) -> None:
        worker = data.draw(st.sampled_from(sorted(self.resting - self.asking)))
        self.asking.add(worker)
        self.do(self.scheduler.wants_slot(worker, self.now, self.now))

    @precondition(lambda self: self.resting)
    @rule(data=st.data())
    def resident_goes(self, data) -> None:
        self._withdraw(data.draw(st.sampled_from(sorted(self.resting))))

    def _withdraw(self, worker: int) -> None:
        self.resting.remove(worker)
        self.asking.discard(worker)
        self.devices.pop(worker, None)
        self.do(self.scheduler.worker_gone(worker, self.now))

    @precondition(lambda self: self.exiting)
    @rule(data=st.data())
    def dismissed_goes(self, data) -> None:
        worker = data.draw(st.sampled_from(sorted(self.exiting)))
        del self.exiting[worker]
        self.do(self.scheduler.worker_gone(worker, self.now))

    @precondition(lambda self: self.spares)
    @rule(data=st.data())
    def spare_is_killed(self, data) -> None:
        worker = data.draw(st.sampled_from(sorted(self.spares)))
        key = self.spares.pop(worker)
        self.scheduler.spare_died(worker)
        assert self.scheduler.spares(key) == sum(k == key for k in self.spares.values())
        self.do(self.scheduler.worker_gone(worker, self.now))

    @precondition(lambda self: len(self.up | self.starting) > 1)
    @rule(data=st.data())
    def replace(self, data) -> None:
        old, new = data.draw(st.permutations(sorted(self.up | self.starting)))[:2]
        self.retiring &= set(self.scheduler.keys())
        if self.retiring & {old, new} or old.environment != new.environment:
            return
        self.retiring.add(old)
        self.waiting.update({call: new for call, key in self.waiting.items() if key == old})
        self.do(self.scheduler.retire(old, new, self.now))

    @precondition(lambda self: len(self.up) > 1 and self.waiting)
    @rule(data=st.data())
    def reroute(self, data) -> None:
        new = data.draw(st.sampled_from(sorted(self.up)))
        self.retiring &= set(self.scheduler.keys())
        if new in self.retiring:
            return
        calls = data.draw(st.lists(st.sampled_from(sorted(self.waiting)), unique=True))
        calls = [one for one in calls if self.waiting[one].environment == new.environment]
        # Calls for GPUs stay: they have a wait queue of their own.
        moved = [one for one in calls if one not in self.for_gpus]
        self.waiting.update(dict.fromkeys(moved, new))
        self.do(self.scheduler.rerouted(calls, new, self.now))

    @precondition(lambda self: BASE in self.up and not self.running)
    @rule()
    def want(self) -> None:
        self.do(self.scheduler.wanted(BASE, self.now))

    @rule(seconds=st.floats(min_value=0.1, max_value=40))
    def time_passes(self, seconds) -> None:
        self.now += seconds
        self.do(self.scheduler.tick(self.now))

    @invariant()
    def slots_are_respected(self) -> None:
        assert self.scheduler.busy == self.on_slots <= POLICY.slots
        leased = [uuid for uuids in self.devices.values() for uuid in uuids]
        assert len(leased) == len(set(leased)), "a device is one call's"
        assert self.scheduler.waiting == len(self.waiting)

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        """Each waiting call has a reason: no free slot, or a start or fork in progress."""
        assert not self.asking or self.on_slots == POLICY.slots
        able = [
            call
            for call, key in self.waiting.items()
            if not (self._held_up(key) or self._waits_its_turn(call))
        ]
        for key in {self.waiting[call] for call in able if call not in self.for_gpus}:
            if self.on_slots < POLICY.slots:
                assert key in self.starting or key in self.forks or key in self.spares.values()
                assert key not in self.spares.values(), "a free slot and a spare, and yet it waits"

    @invariant()
    def nobody_waits_for_a_gpu_that_is_free(self) -> None:
        free = 2 - sum(map(len, self.devices.values()))
        queue = [
            call
            for call, key in self.waiting.items()
            if call in self.for_gpus and self.scheduler.is_up(key)
        ]
        if queue and self.for_gpus[min(queue)] <= free and not self._waits_its_turn(min(queue)):
            key = self.waiting[min(queue)]
            assert key in self.forks
            assert key not in self.spares.values()

    @property
    def on_slots(self) -> int:
        return sum(worker not in {*self.devices, *self.answered} for worker in self.running)

    def _held_up(self, key: ZygoteKey) -> bool:
        """The zygote is exiting or paused, or the limit of environments is reached."""
        taken = self.room_taken()
        # An exiting zygote will be gone soon, and an older call may want it again.
        exiting = {one.environment for one in self.going} - {"base"}
        full = key.environment != "base" and len(taken | exiting) >= POLICY.max_environments
        row = self.scheduler._zygote_table.entries.get(key)
        pauses = row is not None and row.pauses(self.now)
        exits = key in self.going or key in self.retired
        return pauses or exits or (full and key.environment not in taken)

    def _waits_its_turn(self, call: int) -> bool:
        """The call's environment yields to another whose calls are older."""
        zygote = self.scheduler._wait_queue.waits_for(call)
        since = zygote.for_gpus[call][0] if call in zygote.for_gpus else zygote.waiting[call]
        return self.scheduler._time_slicing.yields(zygote, since)

    @property
    def retired(self) -> set[ZygoteKey]:
        """Zygotes that exit as soon as their forks are answered."""
        return {key for key in self.up if not self.scheduler.is_up(key)}

    @invariant()
    def spares_are_bounded(self) -> None:
        for key in KEYS:
            spares = sum(k == key for k in self.spares.values())
            assert (
                spares + self.forks.count(key)
                <= max(POLICY.max_spares, POLICY.slots) + POLICY.slots + 2
            )

    def teardown(self) -> None:
        """Without further events, every call finishes."""
        for _ in range(200):
            for key in sorted(self.starting):
                self.starting.remove(key)
                self.up.add(key)
                self.do(self.scheduler.zygote_ready(key, self.now))
            while self.forks:
                self._fork()
            for worker in sorted(self.running):
                self._end(worker)
            for worker in sorted(self.resting - self.asking):
                self._withdraw(worker)
            for key in sorted(self.going):
                self._gone(key)
            self.now += 1
            self.do(self.scheduler.tick(self.now))
            if not self.waiting:
                break
        assert not self.waiting

    def _fork(self) -> None:
        key = self.forks.pop(0)
        worker = next(self.worker_ids)
        self.spares[worker] = self.keys[worker] = key
        self.do(self.scheduler.worker_ready(worker, key, self.now))


World.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestWorld = World.TestCase


def gpus(number: int) -> GpuTable:
    """Devices without memory figures, which are free as soon as they are released."""
    devices = (Device(uuid=f"GPU-{n}", index=n, name="", memory_bytes=None) for n in range(number))
    return GpuTable(GpuPolicy(), devices)


def up(policy: SchedulerPolicy = POLICY, gpus: GpuTable | None = None) -> Scheduler:
    scheduler = Scheduler(policy, gpus)
    scheduler.wanted(BASE, 0.0)
    scheduler.zygote_ready(BASE, 0.0)
    return scheduler


def test_a_spare_is_ready_before_the_first_call():
    scheduler = Scheduler(POLICY)
    assert scheduler.wanted(BASE, 0.0) == [StartZygote(BASE)]
    assert scheduler.zygote_ready(BASE, 0.1) == [ForkWorkers(BASE, 2)]


def test_a_dispatch_forks_the_next_spare_behind_it():
    scheduler = up()
    scheduler.worker_ready(1, BASE, 0.0)
    assert scheduler.submitted(7, BASE, 0.0) == [Dispatch(7, 1), ForkWorkers(BASE, 1)]


def test_a_slot_is_held_until_the_tree_is_gone():
    scheduler = up(SchedulerPolicy(slots=1))
    scheduler.worker_ready(1, BASE, 0.0)
    scheduler.submitted(7, BASE, 0.0)
    scheduler.worker_ready(2, BASE, 0.0)
    assert scheduler.submitted(8, BASE, 0.0) == []
    assert scheduler.worker_gone(1, 0.0)[0] == Dispatch(8, 2)


def test_a_starting_zygote_does_not_block_calls_of_others():
    scheduler = up()
    scheduler.worker_ready(1, BASE, 0.0)
    assert scheduler.submitted(7, ZygoteKey("slow"), 0.0) == [StartZygote(ZygoteKey("slow"))]
    assert scheduler.submitted(8, BASE, 1.0)[0] == Dispatch(8, 1)


def test_a_call_with_gpus_holds_no_slot_and_releases_them_with_its_tree():
    scheduler = up(SchedulerPolicy(slots=1), gpus(2))
    for worker in (1, 2, 3):
        scheduler.worker_ready(worker, BASE, 0.0)
    assert scheduler.submitted(7, BASE, 0.0, gpus=2)[0] == Dispatch(7, 1, ("GPU-0", "GPU-1"))
    assert scheduler.submitted(8, BASE, 0.0)[0] == Dispatch(8, 2)
    assert scheduler.submitted(9, BASE, 0.0, gpus=1) == []
    assert scheduler.worker_gone(1, 0.0)[0] == Dispatch(9, 3, ("GPU-0",))


def test_gpus_are_reserved_during_a_fork_but_not_during_a_start():
    slow = ZygoteKey("slow")
    scheduler = up(POLICY, gpus(2))
    scheduler.worker_ready(1, BASE, 0.0)
    assert scheduler.submitted(7, slow, 0.0, gpus=2) == [StartZygote(slow)]
    assert scheduler.submitted(8, BASE, 1.0, gpus=1)[0] == Dispatch(8, 1, ("GPU-0",))
    scheduler.worker_ready(2, BASE, 1.0)
    assert ForkWorkers(slow, 1) not in scheduler.zygote_ready(slow, 2.0)
    assert scheduler.submitted(9, BASE, 3.0, gpus=1) == [], "the free one is kept for the first"
    assert scheduler.gpus.wanted() == 1
    assert ForkWorkers(slow, 1) in scheduler.worker_gone(1, 4.0)
    assert scheduler.worker_ready(3, slow, 5.0)[0] == Dispatch(7, 3, ("GPU-0", "GPU-1"))


def test_waits_are_listed_by_reason():
    slow = ZygoteKey("slow")
    scheduler = up(SchedulerPolicy(slots=1), gpus(1))
    assert scheduler.waits() == {"start": [], "slot": [], "gpu": []}
    for worker in (1, 2):
        scheduler.worker_ready(worker, BASE, 0.0)
    scheduler.submitted(1, BASE, 1.0)
    scheduler.submitted(2, BASE, 1.0, gpus=1)
    scheduler.submitted(3, BASE, 2.0)
    scheduler.submitted(4, BASE, 3.0)
    scheduler.submitted(5, BASE, 4.0, gpus=1)
    scheduler.submitted(6, slow, 5.0)
    assert scheduler.waits() == {"start": [(1, 5.0)], "slot": [(2, 2.0)], "gpu": [(1, 4.0)]}
    assert scheduler.waiting == 4


def test_calls_for_gpus_keep_their_place_when_their_zygote_is_lost():
    scheduler = up(POLICY, gpus(1))
    scheduler.worker_ready(1, BASE, 0.0)
    scheduler.submitted(7, BASE, 0.0, gpus=1)
    for call in (8, 9):
        scheduler.submitted(call, BASE, float(call), gpus=1)
    scheduler.zygote_lost(BASE, "killed", 10.0)
    assert scheduler.gpus.waiting == 0
    scheduler.worker_gone(1, 10.0)
    scheduler.zygote_ready(BASE, 11.0)
    assert scheduler.worker_ready(2, BASE, 11.0)[0] == Dispatch(8, 2, ("GPU-0",))


def test_a_retried_call_goes_first():
    scheduler = up(SchedulerPolicy(slots=1))
    scheduler.submitted(1, BASE, 0.0)
    scheduler.submitted(2, BASE, 0.0, again=True)
    assert scheduler.worker_ready(9, BASE, 0.0)[0] == Dispatch(2, 9)


def test_the_queue_is_bounded_and_a_refusal_changes_nothing():
    scheduler = Scheduler(SchedulerPolicy(slots=1, queue_limit=1))
    scheduler.submitted(1, BASE, 0.0)
    with pytest.raises(QueueFull):
        scheduler.submitted(2, BASE, 0.0)
    assert scheduler.waiting == 1
    assert not scheduler.withdrawn(2)


def test_a_crash_loop_fails_calls_with_its_reason_and_ends_with_time():
    scheduler = Scheduler(POLICY)
    now = 0.0
    for attempt in range(RESTART_LIMIT):
        assert scheduler.submitted(attempt, BASE, now) == [StartZygote(BASE)]
        assert scheduler.zygote_lost(BASE, "bad site", now) == [Fail(attempt, BASE, "bad site")]
        now += 1
    assert scheduler.submitted(99, BASE, now) == [Fail(99, BASE, "bad site")]
    assert scheduler.submitted(100, BASE, RESTART_WINDOW_S + 1) == [StartZygote(BASE)]


def test_a_working_zygote_that_is_killed_is_restarted_with_pauses():
    scheduler = Scheduler(POLICY)
    now, waits = 0.0, []
    commands = scheduler.wanted(BASE, now)
    for worker in range(10):
        assert StartZygote(BASE) in commands
        scheduler.zygote_ready(BASE, now)
        scheduler.worker_ready(worker, BASE, now)
        killed = now
        commands = scheduler.zygote_lost(BASE, "killed", now)
        commands += scheduler.submitted(worker, BASE, now)
        while StartZygote(BASE) not in commands:
            assert not any(isinstance(command, Fail) for command in commands)
            now += 0.5
            commands = scheduler.tick(now)
        waits.append(now - killed)
        scheduler.withdrawn(worker)
    assert waits[:4] == [0, 0, 0.5, 1]
    assert max(waits) == 1


def kill_starts(scheduler: Scheduler, seconds: float) -> tuple[list[float], list[Fail]]:
    """Kill each start as it begins; return the times of starts, and the failed calls."""
    now, starts, failed = 0.0, [], []
    commands = scheduler.submitted(1, BASE, now)
    while now < seconds:
        while StartZygote(BASE) in commands:
            starts.append(now)
            commands = scheduler.zygote_lost(BASE, "killed", now, killed=True)
            failed += [command for command in commands if isinstance(command, Fail)]
        now += 0.5
        commands = scheduler.tick(now) + scheduler.wanted(BASE, now)
    return starts, failed


def test_a_killed_start_is_retried_while_its_calls_wait():
    scheduler = Scheduler(POLICY)
    starts, failed = kill_starts(scheduler, 50.0)
    assert not failed
    assert starts[:4] == [0, 0, 0, 0.5]
    assert max(later - one for one, later in itertools.pairwise(starts)) == 1
    assert scheduler.tick(51.0) == [StartZygote(BASE)]
    assert scheduler.zygote_ready(BASE, 52.0) == [ForkWorkers(BASE, 2)]
    assert Dispatch(1, 7) in scheduler.worker_ready(7, BASE, 52.0), "the first success ends it"


def test_calls_do_not_wait_for_ever_while_each_start_is_killed():
    scheduler = Scheduler(POLICY)
    _starts, failed = kill_starts(scheduler, RESTART_WINDOW_S + 10)
    assert failed == [Fail(1, BASE, "killed")]
    scheduler.submitted(2, BASE, 1000.0)
    commands = scheduler.zygote_lost(BASE, "killed", 1000.0, killed=True)
    assert StartZygote(BASE) in commands, "the next call begins anew"
    assert Fail(2, BASE, "killed") not in commands


def test_an_answered_call_resets_the_pauses_between_starts():
    scheduler = Scheduler(POLICY)
    scheduler.submitted(0, BASE, 0.0)
    for worker in range(10):
        scheduler.zygote_ready(BASE, 0.0)
        assert Dispatch(worker, worker) in scheduler.worker_ready(worker, BASE, 0.0)
        scheduler.release_early(worker, 0.0)
        scheduler.submitted(worker + 1, BASE, 0.0)
        assert StartZygote(BASE) in scheduler.zygote_lost(BASE, "killed", 0.0, killed=True)
        scheduler.worker_gone(worker, 0.0)


def test_a_zygote_replaced_while_it_starts_exits():
    scheduler = Scheduler(POLICY)
    old = ZygoteKey("base", 1)
    scheduler.wanted(old, 0.0)
    assert scheduler.retire(old, BASE, 0.0) == [RetireZygote(old)]
    assert scheduler.zygote_ready(old, 1.0) == [RetireZygote(old)], "its word was on its way"
    assert scheduler.zygote_lost(old, "retired", 2.0) == []
    assert list(scheduler.keys()) == [BASE]
    assert scheduler.zygote_ready(old, 3.0) == [RetireZygote(old)], "and so was this one"


def test_idle_spares_are_dismissed_and_return_with_calls():
    scheduler = up()
    for worker in (1, 2):
        scheduler.worker_ready(worker, BASE, 0.0)
    assert scheduler.tick(5.0) == []
    assert scheduler.tick(11.0) == [DismissWorker(1), DismissWorker(2)]
    for worker in (1, 2):
        scheduler.worker_gone(worker, 11.0)
    assert scheduler.submitted(7, BASE, 12.0) == [ForkWorkers(BASE, 1)]


def test_a_replaced_zygote_passes_on_waiting_calls_and_exits_after_its_last_worker():
    old, new = ZygoteKey("base", 1), ZygoteKey("base", 2)
    scheduler = Scheduler(SchedulerPolicy(slots=1))
    for key in (old, new):
        scheduler.wanted(key, 0.0)
        scheduler.zygote_ready(key, 0.0)
    for worker in (1, 3):
        scheduler.worker_ready(worker, old, 0.0)
    scheduler.submitted(7, old, 0.0)
    scheduler.submitted(8, old, 0.0)
    assert DismissWorker(3) in scheduler.retire(old, new, 0.0)
    scheduler.worker_ready(2, new, 0.0)
    commands = scheduler.worker_gone(1, 0.0)
    assert Dispatch(8, 2) in commands
    assert RetireZygote(old) not in commands, "its dismissed spare and a fork are on their way"
    scheduler.worker_gone(3, 0.0)
    assert scheduler.worker_ready(4, old, 0.0) == [DismissWorker(4), RetireZygote(old)]
    assert scheduler.worker_gone(4, 0.0) == [], "it is told once"


def test_rerouted_calls_keep_their_turn_and_others_are_unaffected():
    lean, loaded = BASE, ZygoteKey("base", 1)
    scheduler = Scheduler(SchedulerPolicy(slots=1))
    for key in (lean, loaded):
        scheduler.wanted(key, 0.0)
        scheduler.zygote_ready(key, 0.0)
    scheduler.worker_ready(1, lean, 0.0)
    assert Dispatch(1, 1) in scheduler.submitted(1, lean, 0.0)
    for call, key in ((2, lean), (3, loaded), (4, lean), (5, lean)):
        scheduler.submitted(call, key, float(call))
    scheduler.rerouted([4, 2, 1, 99], loaded, 6.0)
    assert scheduler.waiting == 4
    began = []
    for worker in (2, 3, 4):
        scheduler.worker_ready(worker, loaded, 7.0)
        commands = scheduler.worker_gone(worker - 1, 7.0)
        began += [one.call for one in commands if isinstance(one, Dispatch)]
    assert began == [2, 3, 4], "one that runs, or is none, is left alone"


def beside_base(number: int) -> Scheduler:
    """A scheduler that runs the maximum number of environments beside the base."""
    scheduler = up(
        SchedulerPolicy(slots=4, max_spares=1, max_environments=number, environment_idle_s=20)
    )
    for one in range(number):
        key = ZygoteKey(f"env{one}")
        scheduler.submitted(one, key, float(one))
        scheduler.zygote_ready(key, float(one))
        assert scheduler.worker_ready(one, key, float(one))[0] == Dispatch(one, one)
        scheduler.worker_ready(100 + one, key, float(one))
        scheduler.worker_gone(one, float(one))
    return scheduler


def test_a_further_environment_replaces_the_least_recently_used():
    scheduler = beside_base(2)
    commands = scheduler.submitted(9, THIRD, 5.0)
    assert commands == [DismissWorker(100), RetireZygote(ZygoteKey("env0")), StartZygote(THIRD)]


def test_a_further_environment_waits_until_another_becomes_idle():
    scheduler = beside_base(1)
    assert Dispatch(8, 100) in scheduler.submitted(8, ZygoteKey("env0"), 5.0)
    assert scheduler.submitted(9, THIRD, 5.0) == []
    assert scheduler.tick(6.0) == []
    scheduler.worker_ready(101, ZygoteKey("env0"), 6.0)
    commands = scheduler.worker_gone(100, 7.0)
    assert commands[-1] == StartZygote(THIRD)


def test_an_environment_without_calls_is_retired_and_the_base_is_not():
    scheduler = beside_base(2)
    assert scheduler.uses("env0")
    assert scheduler.tick(20.5) == [DismissWorker(100), RetireZygote(ZygoteKey("env0"))]
    assert scheduler.zygote_lost(ZygoteKey("env0"), "retired", 20.6) == []
    assert not scheduler.uses("env0")
    scheduler.tick(500.0)
    assert scheduler.is_up(BASE)


def test_a_waiting_environment_starts_as_soon_as_another_is_retired():
    key = ZygoteKey("env0")
    scheduler = up(
        SchedulerPolicy(slots=4, max_spares=1, max_environments=1, environment_idle_s=20)
    )
    scheduler.submitted(1, key, 1.0)
    scheduler.zygote_ready(key, 1.0)
    assert scheduler.submitted(2, THIRD, 2.0) == []
    assert scheduler.withdrawn(1)
    scheduler.worker_not_ready(key, 3.0)
    assert scheduler.retire_idle("env0", 3.0) == [RetireZygote(key), StartZygote(THIRD)]


def test_a_call_for_an_exiting_environment_restarts_it():
    scheduler = beside_base(1)
    key = ZygoteKey("env0")
    assert scheduler.retire_idle("env0", 3.0) == [DismissWorker(100), RetireZygote(key)]
    assert scheduler.submitted(5, key, 3.1) == []
    assert scheduler.zygote_lost(key, "retired", 3.2) == [StartZygote(key)]
