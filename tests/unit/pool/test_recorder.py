"""Calls are counted many at a time: what is read must be what counting each by itself would give."""

import random
import time
from bisect import bisect_left

import pytest

from flashpool.pool.calls import Outcome, Provision, Receipt
from flashpool.pool.histograms import BOUNDS
from flashpool.pool.recorder import PHASES, PROVISIONING, Recorder


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1_000_000_020.0

    monkeypatch.setattr(time, "time", lambda: Clock.now)
    return Clock


def outcomes(number):
    draw = random.Random(number)
    for _ in range(number):
        seconds = {f"{phase}_s": draw.expovariate(2.0) for phase in PHASES}
        spent = {f"{phase}_s": seconds.pop(f"{phase}_s") for phase in PROVISIONING}
        provision = Provision(origin=draw.choice(["base", "built", "disk"]), **spent)
        receipt = Receipt(provision=provision, attempts=draw.choice([0, 1, 2]), **seconds)
        yield Outcome(receipt=receipt, error_type=draw.choice([None, None, "Crash"]))


@pytest.mark.parametrize("number", [1, 255, 256, 257, 1000])
def test_each_phase_counts_the_calls_that_had_it(clock, number):
    recorder = Recorder()
    found = list(outcomes(number))
    for one in found:
        recorder.ended(None, "f", one)
    receipts = [one.receipt for one in found]
    for phase in PHASES:
        if phase in PROVISIONING:
            values = [
                getattr(one.provision, f"{phase}_s")
                for one in receipts
                if one.provision.origin != "base"
            ]
        else:
            always = phase in {"queue", "total"}
            values = [getattr(one, f"{phase}_s") for one in receipts if always or one.attempts]
        if not values:
            assert phase not in recorder.latency()
            continue
        stats = recorder.latency()[phase]
        assert stats.count == len(values)
        assert stats.sum_s == pytest.approx(sum(values), abs=1e-6)
        assert stats.max_s == pytest.approx(max(values), abs=1e-6)
        below = 0
        for bucket, bound in zip(stats.buckets, BOUNDS, strict=False):
            below += sum(BOUNDS[bisect_left(BOUNDS, one)] == bound for one in values)
            assert bucket.count == below
    failed = sum(one.error_type is not None for one in found)
    assert [(row.calls, row.failed) for row in recorder.last_hour()] == [(number, failed)]
    assert sum(recorder.outcomes.values()) == recorder.calls == number


def test_each_call_counts_in_the_minute_in_which_it_finished(clock):
    recorder, (ok,) = Recorder(), list(outcomes(1))
    first = clock.now
    for minute, number in enumerate([3, 0, 300, 1]):
        clock.now = first + minute * 60.0
        for _ in range(number):
            recorder.ended(None, "f", ok)
    clock.now = first + 1200.0
    assert [(row.at - first + first % 60, row.calls) for row in recorder.last_hour()] == [
        (0, 3),
        (120, 300),
        (180, 1),
    ]
