"""The table of an app against a world that carries out its commands in any order."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flashpool.pool.residents.apps.states import (
    PAUSES_S,
    AppPolicy,
    AppWorkerState,
    Command,
    Hopeless,
    Interrupt,
    KillWorker,
    LoseRequest,
    SendRequest,
    StartWorker,
    TryLater,
    TurnAway,
)
from flashpool.pool.residents.apps.table import AppTable

POLICY = AppPolicy(workers=2, concurrency=2, queue_limit=3)


def ready(policy: AppPolicy = POLICY) -> AppTable:
    table = AppTable(policy)
    for command in table.start():
        assert isinstance(command, StartWorker)
        table.loaded(command.worker)
    return table


class AppWorld(RuleBasedStateMachine):
    """Workers load, die and hang; requests come, are answered, leave, and take too long."""

    def __init__(self) -> None:
        super().__init__()
        self.table = AppTable(POLICY)
        self.ids = itertools.count(1)
        self.now = 0.0
        self.loading: set[int] = set()
        self.ready: set[int] = set()
        self.pauses = 0
        #: Unfinished requests: the worker of each, and how often each was sent.
        self.open: dict[int, int | None] = {}
        self.sent: dict[int, int] = {}
        self.begun: set[int] = set()
        self.interrupted: set[int] = set()
        self.carry_out(self.table.start())

    def carry_out(self, commands: Iterable[Command]) -> None:
        for command in commands:
            if isinstance(command, StartWorker):
                self.loading.add(command.worker)
            elif isinstance(command, TryLater):
                self.pauses += 1
            elif isinstance(command, SendRequest):
                assert self.open[command.request] is None
                assert command.worker in self.ready
                assert command.request not in self.begun
                self.open[command.request] = command.worker
                self.sent[command.request] = self.sent.get(command.request, 0) + 1
                assert self.sent[command.request] <= 2
            elif isinstance(command, Interrupt):
                assert self.open[command.request] == command.worker
                self.interrupted.add(command.request)
            elif isinstance(command, KillWorker):
                assert command.worker in self.ready
                assert command.culprit in self.interrupted & self.begun
            else:
                assert isinstance(command, TurnAway | Hopeless | LoseRequest)
                del self.open[command.request]

    def in_workers(self) -> list[int]:
        return [one for one, worker in self.open.items() if worker is not None]

    @rule()
    def request(self) -> None:
        number = next(self.ids)
        self.open[number] = None
        self.carry_out(self.table.requested(number))

    @precondition(lambda self: self.loading)
    @rule(data=st.data())
    def load(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.loading)))
        self.loading.remove(worker)
        self.ready.add(worker)
        self.carry_out(self.table.loaded(worker))

    @precondition(lambda self: self.in_workers())
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.begun.add(data.draw(st.sampled_from(self.in_workers())))

    @precondition(lambda self: self.in_workers())
    @rule(data=st.data(), lingers=st.booleans())
    def answer(self, data: st.DataObject, lingers: bool) -> None:
        number = data.draw(st.sampled_from(self.in_workers()))
        worker = self.open.pop(number)
        assert worker is not None
        self.carry_out(self.table.answered(number))
        if lingers:
            self.table.lingers(worker)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def late(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(list(self.open)))
        waits = self.open[number] is None
        self.carry_out(self.table.late(number, began=number in self.begun))
        if waits:
            del self.open[number]

    @precondition(lambda self: self.interrupted & self.open.keys())
    @rule(data=st.data())
    def grace_over(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.interrupted & self.open.keys())))
        self.carry_out(self.table.grace_over(number))

    @precondition(lambda self: self.loading | self.ready)
    @rule(data=st.data(), ours=st.booleans())
    def die(self, data: st.DataObject, ours: bool) -> None:
        worker = data.draw(st.sampled_from(sorted(self.loading | self.ready)))
        self.loading.discard(worker)
        self.ready.discard(worker)
        for number, where in self.open.items():
            if where == worker and number not in self.begun:
                self.open[number] = None
        self.now += 1
        self.carry_out(self.table.died(worker, self.begun, "it died", self.now, ours=ours))

    @precondition(lambda self: self.pauses)
    @rule()
    def pause_over(self) -> None:
        self.pauses -= 1
        self.carry_out(self.table.retry())

    @invariant()
    def all_workers_are_there_or_to_come(self) -> None:
        assert len(self.loading) + len(self.ready) + self.pauses == POLICY.workers

    @invariant()
    def no_request_is_forgotten(self) -> None:
        for number, worker in self.open.items():
            assert self.table.worker_of(number) == worker
            assert (number in self.table.waiting) == (worker is None)

    @invariant()
    def nobody_waits_in_vain(self) -> None:
        """A request waits only while no worker can take it."""
        if self.table.waiting:
            for row in self.table.workers.values():
                free = row.state is AppWorkerState.READY and not row.doubts
                assert not free or row.load >= POLICY.concurrency
            assert len(self.table.waiting) <= POLICY.queue_limit + 2 * POLICY.concurrency

    @invariant()
    def slots_of_ledgers_are_held_once(self) -> None:
        for row in self.table.workers.values():
            taken = [*row.slots, *row.requests.values()]
            assert sorted(taken) == list(range(POLICY.concurrency))


TestAppWorld = AppWorld.TestCase
TestAppWorld.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_the_least_loaded_worker_gets_the_next_request():
    table = ready()
    workers = [table.requested(number)[0].worker for number in (1, 2, 3, 4)]
    assert sorted(workers[:2]) == sorted(workers[2:]) == [1, 2]


def test_requests_wait_for_room_and_are_refused_when_the_queue_is_full():
    table = ready()
    for number in range(1, 5):
        assert isinstance(table.requested(number)[0], SendRequest)
    assert [table.requested(number) for number in (5, 6, 7)] == [[], [], []]
    assert table.requested(8) == [TurnAway(8)]
    assert table.answered(1)[0].request == 5


def test_a_dead_worker_loses_begun_requests_and_others_are_resent_once():
    table = ready(AppPolicy(workers=1, concurrency=2))
    table.requested(1)
    table.requested(2)
    assert table.died(1, {1}, "crash", 0.0) == [
        LoseRequest(1, began=True, sibling=False),
        StartWorker(2),
    ]
    (again,) = table.loaded(2)
    assert (again.request, again.worker) == (2, 2)
    assert LoseRequest(2, began=False, sibling=False) in table.died(2, set(), "crash", 1.0)


def test_an_abandoned_request_is_not_resent():
    table = ready(AppPolicy(workers=1))
    table.requested(1)
    table.abandoned(1)
    assert LoseRequest(1, began=False, sibling=False) in table.died(1, set(), "crash", 0.0)


def test_a_worker_with_a_late_request_gets_no_new_ones():
    table = ready(AppPolicy(workers=1))
    table.requested(1)
    assert table.late(1, began=True) == [Interrupt(1, 1)]
    assert table.requested(2) == []
    (sent,) = table.answered(1)
    assert sent.request == 2
    assert table.grace_over(1) == []


def test_a_late_request_that_outlasts_the_grace_kills_its_worker():
    table = ready(AppPolicy(workers=1))
    table.requested(1)
    table.requested(2)
    table.late(1, began=True)
    assert table.grace_over(1) == [KillWorker(1, 1)]
    assert table.died(1, {1, 2}, "killed", 0.0)[:2] == [
        LoseRequest(1, began=True, sibling=False),
        LoseRequest(2, began=True, sibling=True),
    ]


def test_a_late_request_that_has_not_begun_does_not_block_its_worker():
    table = ready(AppPolicy(workers=1))
    table.requested(1)
    table.requested(2)
    assert table.late(2, began=False) == [Interrupt(2, 1)]
    assert isinstance(table.requested(3)[0], SendRequest)
    assert table.grace_over(2) == []


def test_loading_a_failing_app_is_retried_with_growing_pauses():
    table = AppTable(AppPolicy())
    (start,) = table.start()
    table.requested(1)
    pauses = []
    for at in range(5):
        commands = table.died(start.worker, (), "it raised", float(at))
        pauses += [one.seconds for one in commands if isinstance(one, TryLater)]
        if not at:
            assert Hopeless(1) in commands
        assert table.requested(10 + at) == [Hopeless(10 + at)]
        (start,) = table.retry()
    assert pauses == [*PAUSES_S, PAUSES_S[-1]]
    table.loaded(start.worker)
    assert table.failure == ""


def test_a_worker_that_served_is_replaced_at_once_however_often_it_dies():
    table = ready(AppPolicy(workers=1))
    for number in range(1, 30):
        table.requested(number)
        commands = table.died(number, {number}, "crash", 0.1 * number)
        assert StartWorker(number + 1) in commands
        table.loaded(number + 1)


def test_a_worker_that_keeps_dying_without_a_request_is_restarted_later():
    table = ready(AppPolicy(workers=1))
    assert table.died(1, (), "crash", 0.0) == [StartWorker(2)]
    table.loaded(2)
    assert table.died(2, (), "crash", 1.0) == [TryLater(PAUSES_S[1])]
