"""Environments that take turns because more have calls than may run, in simulated time."""

import heapq
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from flashpool.pool.scheduling.commands import (
    DismissWorker,
    Dispatch,
    Fail,
    ForkWorkers,
    RetireZygote,
    SchedulerPolicy,
    StartZygote,
    ZygoteKey,
)
from flashpool.pool.scheduling.scheduler import Scheduler
from flashpool.pool.scheduling.time_slicing import TURN_S

START_S, LEAVE_S, RUN_S = 0.1, 0.05, 0.2


class Simulation:
    """Carries out each command after its simulated duration."""

    def __init__(self, **policy: Any) -> None:
        self.scheduler = Scheduler(SchedulerPolicy(**policy))
        self.now = 0.0
        self.waited: dict[int, float] = {}
        self.starts: list[str] = []
        self._came: dict[int, float] = {}
        self._ids = itertools.count()
        self._events: list[tuple[float, int, Callable[[float], Any]]] = []
        self._workers: dict[int, ZygoteKey] = {}

    def at(self, moment: float, event: Callable[[float], Any]) -> None:
        heapq.heappush(self._events, (moment, next(self._ids), event))

    def call(self, environment: str, moment: float) -> int:
        number = next(self._ids)
        self._came[number] = moment
        self.at(moment, partial(self.scheduler.submitted, number, ZygoteKey(environment)))
        return number

    def withdraw(self, number: int, moment: float) -> None:
        self.at(moment, lambda now: self.scheduler.withdrawn(number) and [])

    def run(self, until: float) -> None:
        for moment in range(int(until)):
            self.at(moment, self.scheduler.tick)
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            for command in event(self.now) or ():
                self._carry_out(command)

    def _carry_out(self, command: Any) -> None:
        scheduler, now = self.scheduler, self.now
        if isinstance(command, StartZygote):
            self.starts.append(command.key.environment)
            self.at(now + START_S, partial(scheduler.zygote_ready, command.key))
        elif isinstance(command, RetireZygote):
            self.at(now + LEAVE_S, partial(scheduler.zygote_lost, command.key, "retired"))
        elif isinstance(command, ForkWorkers):
            for _ in range(command.number):
                worker = next(self._ids)
                self.at(now, partial(scheduler.worker_ready, worker, command.key))
        elif isinstance(command, DismissWorker):
            self.at(now, partial(scheduler.worker_gone, command.worker))
        else:
            assert isinstance(command, Dispatch), command
            assert not isinstance(command, Fail)
            self.waited[command.call] = now - self._came[command.call]
            self.at(now + RUN_S, partial(scheduler.worker_gone, command.worker))


def steadily(world: Simulation, environment: str, until: float) -> list[int]:
    """Submit calls without a pause, so that the environment is never idle."""
    return [world.call(environment, 0.1 * number) for number in range(int(until * 10))]


def test_one_call_gets_its_turn_among_many_of_another_environment() -> None:
    world = Simulation(slots=3, max_environments=1)
    many = steadily(world, "busy", 20)
    one = world.call("other", 5.05)
    world.run(30)
    assert world.waited[one] < TURN_S + 2
    assert world.starts == ["busy", "other", "busy"]
    assert len(world.waited) == len(many) + 1
    assert max(world.waited.values()) < TURN_S + 2


@pytest.mark.parametrize("places", [1, 2])
def test_busy_environments_take_turns(places: int) -> None:
    world = Simulation(slots=8, max_environments=places)
    names = [f"env{number}" for number in range(4)]
    for name in names:
        steadily(world, name, 30)
    world.run(80)
    assert len(world.waited) == 4 * 300
    # Turns are long enough to be worth a start.
    assert len(world.starts) <= 40 * places / TURN_S + 4
    assert max(world.waited.values()) < 15


def test_a_turn_whose_calls_were_withdrawn_is_skipped() -> None:
    world = Simulation(slots=1, max_environments=1)
    many = [world.call("busy", 0.15 * number) for number in range(100)]
    gone = world.call("other", 5.05)
    world.withdraw(gone, 7.2)
    world.run(40)
    assert set(world.waited) == set(many)
    assert world.starts == ["busy"]


def test_a_yielded_turn_goes_to_the_next_environment() -> None:
    world = Simulation(slots=2, max_environments=1)
    many = steadily(world, "busy", 20)
    gone = world.call("other", 5.05)
    world.withdraw(gone, 7.15)
    third = world.call("third", 7.12)
    world.run(40)
    assert set(world.waited) == {*many, third}
    assert world.waited[third] < TURN_S + 3
