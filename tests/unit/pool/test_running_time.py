"""The clock that stands still with the process."""

import pytest

from flashpool.pool.running_time import BEAT_S, SLACK_S, RunningTime


@pytest.fixture
def clock():
    class Clock:
        at = 100.0

    clock = Clock()
    clock.time = RunningTime(lambda: clock.at)
    return clock


def test_it_is_the_monotonic_clock_until_the_first_beat(clock) -> None:
    clock.at += 1000
    assert clock.time.now() == 1100


def test_a_beat_that_is_a_little_late_is_no_pause(clock) -> None:
    for _ in range(10):
        clock.time.beat()
        clock.at += BEAT_S + SLACK_S
        assert clock.time.beat() == clock.time.now() == clock.at
    assert clock.time.stood_still == 0


def test_the_first_beat_after_a_pause_notices_it(clock) -> None:
    clock.time.beat()
    clock.at += BEAT_S + 500
    assert clock.time.beat() == pytest.approx(100 + BEAT_S)
    assert clock.time.now() == pytest.approx(100 + BEAT_S)
    assert clock.time.stood_still == pytest.approx(500)
    clock.at += 0.5
    assert clock.time.now() == pytest.approx(100 + BEAT_S + 0.5)


def test_pauses_add_up(clock) -> None:
    for _ in range(3):
        clock.time.beat()
        clock.at += BEAT_S + 10
        clock.time.beat()
    assert clock.time.stood_still == pytest.approx(30)
