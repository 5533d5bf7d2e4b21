"""The scheduler with events that arrive late, twice, out of order, or not at all.

Whatever it is told, it raises nothing, gives no slot twice and dispatches no call twice; and
when the world has become orderly again, every call that waits comes to its end.
"""

from __future__ import annotations

import itertools

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from flashpool.pool.gpus.devices import Device
from flashpool.pool.gpus.states import GpuPolicy
from flashpool.pool.gpus.table import GpuTable
from flashpool.pool.scheduling.commands import (
    Command,
    DismissWorker,
    Dispatch,
    Fail,
    ForkWorkers,
    QueueFull,
    RetireZygote,
    SchedulerPolicy,
    StartZygote,
    ZygoteKey,
)
from flashpool.pool.scheduling.scheduler import Scheduler

KEYS = [ZygoteKey(name, profile) for name in ("base", "other", "third") for profile in (0, 1)]
POLICY = SchedulerPolicy(slots=2, max_spares=3, max_environments=1, environment_idle_s=20)
#: Ids of workers and calls, some of which the scheduler has never seen.
NUMBERS = st.integers(0, 25)


class Disorder(RuleBasedStateMachine):
    """Events that are unrelated to each other."""

    def __init__(self) -> None:
        super().__init__()
        devices = (Device(uuid=f"GPU-{n}", index=n, name="", memory_bytes=None) for n in range(2))
        self.scheduler = Scheduler(POLICY, GpuTable(GpuPolicy(), devices))
        self.now = 0.0
        self.calls = itertools.count()
        self.waiting: set[int] = set()
        self.dispatched: set[int] = set()
        self.workers = itertools.count(1000)
        self.todo: list[Command] = []

    def do(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Dispatch):
                assert command.call in self.waiting, "a call is dispatched once, while it waits"
                self.waiting.remove(command.call)
                self.dispatched.add(command.worker)
            elif isinstance(command, Fail):
                self.waiting.remove(command.call)
            self.todo.append(command)
        del self.todo[:-100]

    @rule(key=st.sampled_from(KEYS), gpus=st.sampled_from([0, 0, 1, 2]))
    def submit(self, key, gpus) -> None:
        call = next(self.calls)
        self.waiting.add(call)
        try:
            self.do(self.scheduler.submitted(call, key, self.now, gpus=gpus))
        except QueueFull:
            self.waiting.remove(call)

    @rule(call=NUMBERS)
    def withdraw(self, call) -> None:
        if self.scheduler.withdrawn(call):
            self.waiting.remove(call)

    @rule(key=st.sampled_from(KEYS))
    def want(self, key) -> None:
        self.do(self.scheduler.wanted(key, self.now))

    @rule(key=st.sampled_from(KEYS))
    def zygote_ready(self, key) -> None:
        self.do(self.scheduler.zygote_ready(key, self.now))

    @rule(key=st.sampled_from(KEYS), curable=st.booleans(), killed=st.booleans())
    def zygote_lost(self, key, curable, killed) -> None:
        self.do(self.scheduler.zygote_lost(key, "lost", self.now, curable=curable, killed=killed))

    @rule(key=st.sampled_from(KEYS), heir=st.sampled_from(KEYS))
    def retire(self, key, heir) -> None:
        if key != heir and key.environment == heir.environment:
            self.do(self.scheduler.retire(key, heir, self.now))

    @rule(key=st.sampled_from(KEYS), calls=st.lists(NUMBERS, max_size=4))
    def reroute(self, key, calls) -> None:
        self.do(self.scheduler.rerouted(calls, key, self.now))

    @rule(worker=NUMBERS, key=st.sampled_from(KEYS))
    def worker_ready(self, worker, key) -> None:
        self.do(self.scheduler.worker_ready(worker, key, self.now))

    @rule(key=st.sampled_from(KEYS))
    def worker_not_ready(self, key) -> None:
        self.do(self.scheduler.worker_not_ready(key, self.now))

    @rule(worker=NUMBERS)
    def worker_answers(self, worker) -> None:
        self.do(self.scheduler.release_early(worker, self.now))

    @rule(worker=NUMBERS)
    def worker_gone(self, worker) -> None:
        self.do(self.scheduler.worker_gone(worker, self.now))
        self.dispatched.discard(worker)

    @rule(worker=NUMBERS)
    def spare_died(self, worker) -> None:
        self.scheduler.spare_died(worker)

    @rule(worker=NUMBERS)
    def resident_rests(self, worker) -> None:
        self.do(self.scheduler.release_slot(worker, self.now))

    @rule(worker=NUMBERS)
    def resident_asks(self, worker) -> None:
        self.do(self.scheduler.wants_slot(worker, self.now, self.now))
        self.scheduler.may_go_on(worker)

    @rule(name=st.sampled_from(["base", "other", "third"]))
    def retire_environment(self, name) -> None:
        self.do(self.scheduler.retire_idle(name, self.now))

    @rule()
    def gpus_changed(self) -> None:
        self.do(self.scheduler.gpus_changed(self.now))

    @rule(seconds=st.floats(min_value=0.1, max_value=40))
    def time_passes(self, seconds) -> None:
        self.now += seconds
        self.do(self.scheduler.tick(self.now))

    @rule(at=st.integers(0, 99), times=st.integers(1, 2))
    def something_is_answered(self, at, times) -> None:
        """Answer an earlier command, once or twice."""
        if at >= len(self.todo):
            return
        command = self.todo[at]
        for _ in range(times):
            if isinstance(command, StartZygote):
                self.do(self.scheduler.zygote_ready(command.key, self.now))
            elif isinstance(command, RetireZygote):
                self.do(self.scheduler.zygote_lost(command.key, "retired", self.now))
            elif isinstance(command, ForkWorkers):
                self.do(self.scheduler.worker_ready(at, command.key, self.now))
            elif isinstance(command, DismissWorker | Dispatch):
                self.do(self.scheduler.worker_gone(command.worker, self.now))

    @invariant()
    def slots_are_respected(self) -> None:
        assert 0 <= self.scheduler.busy <= POLICY.slots
        assert self.scheduler.waiting == len(self.waiting)

    def teardown(self) -> None:
        """Everything dies; processes started after that behave."""
        workers = list(self.scheduler._zygote_of)
        self.todo.clear()
        for key in KEYS:
            self.do(self.scheduler.zygote_lost(key, "killed", self.now, killed=True))
        for worker in workers:
            self.do(self.scheduler.worker_gone(worker, self.now))
        assert self.scheduler.busy == 0
        self.now += 100  # earlier failed starts no longer count
        alive: dict[int, ZygoteKey] = {}
        for _ in range(200):
            self.do(self.scheduler.tick(self.now))
            while self.todo:
                todo, self.todo = self.todo, []
                for command in todo:
                    self._carry_out(command, alive)
            for worker in list(alive):
                del alive[worker]
                self.do(self.scheduler.worker_gone(worker, self.now))
            self.now += 1
            if not self.waiting:
                break
        assert not self.waiting

    def _carry_out(self, command: Command, alive: dict[int, ZygoteKey]) -> None:
        scheduler = self.scheduler
        if isinstance(command, StartZygote):
            self.do(scheduler.zygote_ready(command.key, self.now))
        elif isinstance(command, RetireZygote):
            self.do(scheduler.zygote_lost(command.key, "retired", self.now))
        elif isinstance(command, ForkWorkers):
            for _ in range(command.number):
                worker = next(self.workers)
                alive[worker] = command.key
                self.do(scheduler.worker_ready(worker, command.key, self.now))
        elif isinstance(command, DismissWorker):
            alive.pop(command.worker, None)
            self.do(scheduler.worker_gone(command.worker, self.now))


Disorder.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestDisorder = Disorder.TestCase
