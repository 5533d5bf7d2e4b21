"""The clock that does not advance while the process is stopped."""

import pytest

from flashpool.pool.running_time import BEAT_S, SLACK_S, RunningTime


@pytest.fixture
def clock():
    class Clock:
        at = 100.0

    clock = Clock()
    clock.time = RunningTime(lambda: clock.at)
    return clock


def test_before_the_first_beat_it_is_the_monotonic_clock(clock) -> None:
    clock.at += 1000
    assert clock.time.now() == 1100


def test_a_slightly_late_beat_is_not_a_pause(clock) -> None:
    for _ in range(10):
        clock.time.beat()
        clock.at += BEAT_S + SLACK_S
        assert clock.time.beat() == clock.time.now() == clock.at
    assert clock.time.stood_still == 0


def test_the_first_beat_after_a_pause_detects_it(clock) -> None:
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
