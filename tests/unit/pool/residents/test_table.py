"""The table of instances against a world that carries out its commands in any order."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flashpool.pool.calls import InstanceRequest
from flashpool.pool.residents.states import (
    CRASH_WINDOW_S,
    CRASHES,
    UNNAMED_IDLE_S,
    Abandon,
    Close,
    Command,
    Conflict,
    InstanceState,
    Invoke,
    KeepSlot,
    Load,
    Lose,
    NotThere,
    Refuse,
    ReleaseSlot,
    ResidentPolicy,
    WantSlot,
)
from flashpool.pool.residents.table import InstanceTable

NAMES = ["a", "b", "c", "d"]
POLICY = ResidentPolicy(limit=2, idle_s=30.0, memory_bytes=1000)


class World(RuleBasedStateMachine):
    """Instances are loaded, called, closed and killed; time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.table = InstanceTable(POLICY)
        self.now = 0.0
        self.ids = itertools.count()
        self.asked: list[str] = []
        self.loading: list[str] = []
        self.ready: set[str] = set()
        self.leaving: list[str] = []
        self.slots: set[str] = set()
        self.want_slot: list[str] = []
        self.open: dict[int, str] = {}
        self.running: dict[int, str] = {}
        self.codes: dict[int, int] = {}
        #: The code of each instance that has a worker.
        self.made_of: dict[str, int] = {}

    def carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Load):
                assert command.instance not in self.with_worker()
                self.asked.append(command.instance)
            elif isinstance(command, Abandon):
                self.asked.remove(command.instance)
            elif isinstance(command, WantSlot):
                assert command.instance in self.ready - self.slots
                self.want_slot.append(command.instance)
            elif isinstance(command, KeepSlot):
                self.slots.remove(command.instance)
                self.want_slot.append(command.instance)
            elif isinstance(command, ReleaseSlot):
                self.slots.discard(command.instance)
                assert command.instance not in self.running.values()
            elif isinstance(command, Invoke):
                assert command.instance in self.ready & self.slots
                assert self.open[command.call] == command.instance
                assert self.made_of[command.instance] == self.codes[command.call]
                self.running[command.call] = command.instance
            elif isinstance(command, Close):
                assert command.instance in self.ready
                assert command.instance not in self.running.values()
                self.stop_worker(command.instance)
            elif isinstance(command, (Refuse, Lose)):
                assert self.open.pop(command.call) == command.instance

    def with_worker(self) -> set[str]:
        return {*self.asked, *self.loading, *self.ready, *self.leaving}

    def stop_worker(self, name: str) -> None:
        self.ready.discard(name)
        self.slots.discard(name)
        if name in self.want_slot:
            self.want_slot.remove(name)
        self.leaving.append(name)

    @rule(
        name=st.sampled_from(NAMES),
        method=st.sampled_from("sa"),
        anew=st.booleans(),
        must_exist=st.booleans(),
        code=st.sampled_from([1, 1, 1, 2]),
    )
    def call(self, name: str, method: str, anew: bool, must_exist: bool, code: int) -> None:
        call = next(self.ids)
        want = InstanceRequest(
            instance=name,
            code=code,
            method=method,
            concurrency=2,
            anew=anew,
            must_exist=must_exist,
        )
        try:
            commands = self.table.called(call, want, self.now)
        except (Conflict, NotThere):
            return
        self.open[call] = name
        self.codes[call] = code
        self.carry_out(commands)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def begin_to_load(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.asked))
        self.asked.remove(name)
        self.loading.append(name)
        self.slots.add(name)
        self.made_of[name] = self.codes[self.table.loading(name)]

    @precondition(lambda self: self.loading)
    @rule(data=st.data())
    def load(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.loading))
        self.loading.remove(name)
        self.ready.add(name)
        self.carry_out(self.table.loaded(name, ["a"], self.now))

    @precondition(lambda self: self.loading)
    @rule(data=st.data())
    def refuse_to_load(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.loading))
        self.loading.remove(name)
        for call in self.table.not_loaded(name, "it raised"):
            assert self.open.pop(call) == name
        self.stop_worker(name)

    @precondition(lambda self: self.loading or self.ready)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted({*self.loading, *self.ready})))
        unmade = name in self.loading
        if unmade:
            self.loading.remove(name)
        self.stop_worker(name)
        self.leaving.remove(name)
        self.forget_running(name)
        self.carry_out(self.table.gone(name, "it died", self.now, unmade=unmade))

    @precondition(lambda self: self.leaving)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.leaving))
        self.leaving.remove(name)
        self.forget_running(name)
        self.carry_out(self.table.gone(name, "it closed", self.now))

    def forget_running(self, name: str) -> None:
        for call, instance in list(self.running.items()):
            if instance == name:
                del self.running[call], self.open[call]

    @precondition(lambda self: self.want_slot)
    @rule(data=st.data())
    def grant(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.want_slot))
        self.want_slot.remove(name)
        self.slots.add(name)
        self.carry_out(self.table.granted(name, self.now))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(sorted(self.running)))
        del self.running[call], self.open[call]
        self.carry_out(self.table.answered(call, self.now))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(sorted(self.open)))
        commands = self.table.withdrawn(call, self.now)
        assert (commands is None) == (call in self.running)
        if commands is not None:
            del self.open[call]
            self.carry_out(commands)

    @precondition(lambda self: self.ready)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.ready)))
        self.table.closing(name, "a call in it ran too long")
        self.stop_worker(name)

    @rule(seconds=st.floats(0, 40))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.carry_out(self.table.tick(self.now))

    @rule(name=st.sampled_from(NAMES), size=st.integers(0, 1500))
    def measure(self, name: str, size: int) -> None:
        self.table.measured(name, size)

    @rule()
    def need(self) -> None:
        self.carry_out(self.table.needed(list(self.ready), "a call needs its GPU"))

    @rule(name=st.sampled_from(NAMES))
    def release(self, name: str) -> None:
        self.carry_out(self.table.release(name, "its handle was dropped", self.now))

    @invariant()
    def released_ones_do_not_idle(self) -> None:
        assert not any(one.released and one.idle for one in self.table)

    @invariant()
    def no_more_than_the_limit_have_a_worker(self) -> None:
        assert len(self.with_worker()) <= POLICY.limit

    @invariant()
    def calls_of_one_instance_run_alone_or_overlap_within_its_concurrency(self) -> None:
        for instance in self.table:
            if len(instance.running) > 1:
                assert all(instance.running.values())
                assert len(instance.running) <= 2

    @invariant()
    def the_table_counts_its_waiting_calls(self) -> None:
        assert self.table.waiting == len(self.open) - len(self.running)

    @invariant()
    def nothing_waits_for_ever(self) -> None:
        """For each waiting call, something is in progress that will serve it."""
        for instance in self.table:
            if not instance.waiting:
                continue
            name = instance.name
            moving = name in {*self.asked, *self.loading, *self.want_slot, *self.leaving}
            called = any(one == name for one in self.running.values())
            full = instance.state is InstanceState.PENDING and not any(
                one.idle for one in self.table
            )
            room_comes = instance.state is InstanceState.PENDING and bool(self.leaving)
            assert moving or called or full or room_comes, instance


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


def _ready(table: InstanceTable, name: str, call: int, now: float) -> None:
    """Load an instance with a call, and finish the call."""
    assert table.called(call, InstanceRequest(instance=name, code=1), now) == [Load(name)]
    table.loading(name)
    assert Invoke(call, name) in table.loaded(name, [], now)
    assert ReleaseSlot(name) in table.answered(call, now)


def test_the_longest_idle_instance_is_evicted() -> None:
    table = InstanceTable(ResidentPolicy(limit=2))
    _ready(table, "a", 1, 1.0)
    _ready(table, "b", 2, 2.0)
    (close,) = table.called(3, InstanceRequest(instance="c", code=1), 3.0)
    assert isinstance(close, Close)
    assert close.instance == "a"
    assert table.gone("a", "closed", 4.0) == [Load("c")]


def test_other_code_under_one_name_is_refused_unless_it_replaces() -> None:
    table = InstanceTable(ResidentPolicy())
    _ready(table, "a", 1, 0.0)
    with pytest.raises(Conflict):
        table.called(2, InstanceRequest(instance="a", code=2), 1.0)
    commands = table.called(3, InstanceRequest(instance="a", code=2, anew=True), 1.0)
    assert commands == [Close("a", "it was replaced")]
    assert table.gone("a", "closed", 2.0) == [Load("a")]
    instance = table.get("a")
    assert instance is not None
    assert (instance.want.code, instance.generation) == (2, 2)


def test_an_instance_that_must_exist_is_not_created_again() -> None:
    table = InstanceTable(ResidentPolicy(idle_s=10))
    _ready(table, "a", 1, 0.0)
    assert [type(one) for one in table.tick(11.0)] == [Close]
    table.gone("a", "closed", 12.0)
    with pytest.raises(NotThere, match="it had no call for 10 s"):
        table.called(2, InstanceRequest(instance="a", code=1, must_exist=True), 13.0)
    assert table.called(3, InstanceRequest(instance="a", code=1), 14.0) == [Load("a")]
    instance = table.get("a")
    assert instance is not None
    assert instance.generation == 2


def test_a_crash_loop_is_cut_off_and_tried_again_later() -> None:
    table = InstanceTable(ResidentPolicy())
    table.called(1, InstanceRequest(instance="a", code=1), 0.0)
    for _ in range(CRASHES):
        table.loading("a")
        commands = table.gone("a", "killed by SIGSEGV", 1.0, unmade=True)
    (refusal,) = commands
    assert isinstance(refusal, Refuse)
    assert "killed by SIGSEGV" in refusal.reason
    (refusal,) = table.called(2, InstanceRequest(instance="a", code=1), 2.0)
    assert isinstance(refusal, Refuse)
    assert table.called(3, InstanceRequest(instance="a", code=1), 2.0 + CRASH_WINDOW_S) == [
        Load("a")
    ]


def test_overlapping_calls_share_a_slot_and_an_exclusive_one_waits() -> None:
    table = InstanceTable(ResidentPolicy())
    want = InstanceRequest(instance="a", code=1, method="a", concurrency=2)
    table.called(1, want, 0.0)
    table.called(2, InstanceRequest(instance="a", code=1, method="s"), 0.0)
    table.called(3, want, 0.0)
    table.loading("a")
    assert table.loaded("a", ["a"], 1.0) == [Invoke(1, "a")]
    assert table.answered(1, 2.0) == [KeepSlot("a", 0.0)]
    assert table.granted("a", 2.0) == [Invoke(2, "a")]
    assert table.called(4, want, 2.0) == []
    table.answered(2, 3.0)
    assert table.granted("a", 3.0) == [Invoke(3, "a"), Invoke(4, "a")]


def _made(table: InstanceTable, name: str, call: int, now: float = 0.0) -> list[Command]:
    """Load an instance; return the commands that follow."""
    table.loading(name)
    commands = table.loaded(name, ["a"], now)
    assert Invoke(call, name) in commands
    return commands


def test_calls_that_want_a_new_instance_queue_and_each_gets_its_own() -> None:
    table = InstanceTable(ResidentPolicy())
    for call in range(3):
        table.called(call, InstanceRequest(instance="a", code=call, anew=True), 0.0)
    for call in range(3):
        _made(table, "a", call)
        instance = table.get("a")
        assert instance is not None
        assert (instance.generation, instance.want.code) == (call + 1, call)
        commands = table.answered(call, 1.0)
        if call < 2:
            assert commands == [ReleaseSlot("a"), Close("a", "it was replaced")]
            assert table.gone("a", "closed", 1.0) == [Load("a")]
        else:
            assert commands == [ReleaseSlot("a")]


def test_calls_get_the_code_they_were_accepted_for() -> None:
    """A waiting call for the old code never runs in the replacement, nor the reverse."""
    table = InstanceTable(ResidentPolicy())
    table.called(1, InstanceRequest(instance="a", code="old"), 0.0)
    _made(table, "a", 1)
    table.called(2, InstanceRequest(instance="a", code="old"), 0.0)
    table.called(3, InstanceRequest(instance="a", code="new", anew=True), 0.0)
    with pytest.raises(Conflict):
        table.called(4, InstanceRequest(instance="a", code="old"), 0.0)
    table.called(5, InstanceRequest(instance="a", code="new"), 0.0)
    assert table.withdrawn(3, 0.5) == [], "5 was accepted for what would have been made for 3"
    table.answered(1, 1.0)
    assert table.granted("a", 1.0) == [Invoke(2, "a")]
    assert Close("a", "it was replaced") in table.answered(2, 2.0)
    assert table.gone("a", "closed", 3.0) == [Load("a")]
    assert table.loading("a") == 5


def test_an_instance_is_created_with_the_arguments_of_its_first_call() -> None:
    table = InstanceTable(ResidentPolicy())
    table.called(1, InstanceRequest(instance="a", code=1, arguments="first"), 0.0)
    _made(table, "a", 1)
    table.called(2, InstanceRequest(instance="a", code=1, arguments="second"), 0.0)
    table.called(3, InstanceRequest(instance="a", code=1, arguments="third", anew=True), 0.0)
    instance = table.get("a")
    assert instance is not None
    assert instance.want.arguments == "first"
    table.closing("a", "killed")
    table.answered(1, 1.0)
    table.gone("a", "killed", 1.0)
    table.loading("a")
    instance = table.get("a")
    assert instance is not None
    assert instance.want.arguments == "second"


def test_calls_that_need_the_existing_instance_fail_when_it_dies() -> None:
    table = InstanceTable(ResidentPolicy())
    table.called(1, InstanceRequest(instance="a", code=1), 0.0)
    _made(table, "a", 1)
    table.called(2, InstanceRequest(instance="a", code=1, must_exist=True), 0.0)
    table.called(3, InstanceRequest(instance="a", code=1), 0.0)
    table.closing("a", "killed by SIGKILL")
    table.answered(1, 1.0)
    commands = table.gone("a", "killed by SIGKILL", 1.0)
    assert commands == [Lose(2, "a", "killed by SIGKILL"), Load("a")]
    assert table.waiting == 1


def test_a_closing_instance_does_not_count_against_the_memory_limit() -> None:
    table = InstanceTable(ResidentPolicy(memory_bytes=100))
    for call, name in enumerate("abc"):
        _ready(table, name, call, float(call))
        table.measured(name, 50)
    assert [one.instance for one in table.tick(5.0) if isinstance(one, Close)] == ["a"]
    assert table.tick(6.0) == [], "the rest uses no more than it may"


def test_a_slot_granted_too_late_is_released() -> None:
    table = InstanceTable(ResidentPolicy(idle_s=10))
    _ready(table, "a", 1, 0.0)
    assert table.called(2, InstanceRequest(instance="a", code=1), 1.0) == [WantSlot("a", 1.0)]
    assert table.withdrawn(2, 2.0) == []
    assert [type(one) for one in table.tick(20.0)] == [Close]
    assert table.granted("a", 21.0) == [ReleaseSlot("a")]


def test_a_closing_instance_may_be_replaced_by_other_code() -> None:
    table = InstanceTable(ResidentPolicy(idle_s=10))
    _ready(table, "a", 1, 0.0)
    table.tick(20.0)
    assert table.called(2, InstanceRequest(instance="a", code=2), 21.0) == []
    assert table.gone("a", "closed", 22.0) == [Load("a")]


def test_withdrawing_an_exclusive_call_starts_the_one_behind_it() -> None:
    table = InstanceTable(ResidentPolicy())
    want = InstanceRequest(instance="a", code=1, method="a", concurrency=2)
    table.called(1, want, 0.0)
    _made(table, "a", 1)
    table.called(2, InstanceRequest(instance="a", code=1, method="s"), 0.0)
    table.called(3, want, 0.0)
    assert table.withdrawn(2, 1.0) == [Invoke(3, "a")]


def test_an_instance_that_was_never_created_does_not_count_as_a_generation() -> None:
    table = InstanceTable(ResidentPolicy())
    want = InstanceRequest(instance="a", code=1, must_exist=True, generation=1)
    table.called(1, want, 0.0)
    table.loading("a")
    assert table.gone("a", "its spare was killed", 0.0, unmade=True) == [Load("a")]
    assert Invoke(1, "a") in _made(table, "a", 1)
    assert table.called(2, want, 1.0) == []


def test_unnamed_instances_are_evicted_before_named_ones() -> None:
    table = InstanceTable(ResidentPolicy(limit=2))
    _ready(table, "named", 1, 1.0)
    assert table.called(2, InstanceRequest(instance="C_1", code=1, unnamed=True), 2.0) == [
        Load("C_1")
    ]
    table.loading("C_1")
    table.loaded("C_1", [], 2.0)
    table.answered(2, 2.0)
    (close,) = table.called(3, InstanceRequest(instance="C_2", code=1, unnamed=True), 3.0)
    assert isinstance(close, Close)
    assert close.instance == "C_1"


def test_an_unnamed_instance_called_again_is_kept_like_a_named_one() -> None:
    table = InstanceTable(ResidentPolicy(idle_s=900))
    table.called(1, InstanceRequest(instance="C_1", code=1, unnamed=True), 0.0)
    table.loading("C_1")
    table.loaded("C_1", [], 0.0)
    table.answered(1, 0.0)
    assert table.tick(UNNAMED_IDLE_S) == []
    table.called(2, InstanceRequest(instance="C_1", code=1), 1.0)
    table.granted("C_1", 1.0)
    table.answered(2, 1.0)
    assert table.tick(2 + UNNAMED_IDLE_S) == []


def test_an_unnamed_instance_is_closed_soon() -> None:
    table = InstanceTable(ResidentPolicy(idle_s=900))
    table.called(1, InstanceRequest(instance="C_1", code=1, unnamed=True), 0.0)
    table.loading("C_1")
    table.loaded("C_1", [], 0.0)
    table.answered(1, 0.0)
    assert [type(one) for one in table.tick(UNNAMED_IDLE_S + 1)] == [Close]


def test_the_gpu_memory_of_instances_is_limited_too() -> None:
    table = InstanceTable(ResidentPolicy(gpu_bytes=100))
    for index, name in enumerate("abc"):
        _ready(table, name, index, float(index))
        table.measured_on_gpus(name, 40)
    (close,) = table.tick(4.0)
    assert isinstance(close, Close)
    assert close.instance == "a"
