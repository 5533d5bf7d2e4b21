from typing import Any

import pytest

from flashpool.frontends.telemetry.phases import failed_phase, timeline
from flashpool.pool.calls import Outcome, Provision, Receipt

S = 1_000_000_000


def receipt(**seconds: float) -> Receipt:
    provision = {f"{name}_s": seconds.pop(name, 0.0) for name in ("resolve", "fetch", "build")}
    pool = {f"{name}_s": value for name, value in seconds.items()}
    return Receipt(provision=Provision(**provision), **pool)  # type: ignore[arg-type]


def test_the_environment_s_phases_come_first_and_the_pool_s_last() -> None:
    one = receipt(resolve=1, build=2, queue=1, start=0.5, run=3, total=5)
    assert timeline(one, 100 * S, 110 * S) == [
        ("resolve", 100 * S, 101 * S),
        ("build", 101 * S, 103 * S),
        ("queue", 105 * S, 106 * S),
        ("start", 106 * S, 106 * S + S // 2),
        ("run", 106 * S + S // 2, 109 * S + S // 2),
    ]


@pytest.mark.parametrize(
    "seconds",
    [
        {"resolve": 50, "run": 1, "total": 1},
        {"run": 50, "total": 50},
        {"queue": 3, "run": 50, "exit": 2, "total": 9},
        {"total": 9},
        {},
    ],
)
def test_no_phase_begins_or_ends_outside_its_call(seconds: dict[str, float]) -> None:
    """A receipt uses the monotonic clock, and a span uses wall-clock time."""
    found = timeline(receipt(**seconds), 10 * S, 12 * S)
    edges = [10 * S, *(edge for one in found for edge in (one.start, one.end)), 12 * S]
    assert edges == sorted(edges)
    assert all(one.start < one.end for one in found)


@pytest.mark.parametrize(
    ("outcome", "phase"),
    [
        ({}, ""),
        ({"error_type": "KeyError", "from_user": True}, "run"),
        ({"error_type": "Timeout", "details": {"phase": "queue"}}, "queue"),
        ({"error_type": "Timeout", "details": {"phase": "receive"}}, "exit"),
        ({"error_type": "WorkerCrashed"}, "exit"),
    ],
)
def test_the_phase_that_failed_is_marked(outcome: dict[str, Any], phase: str) -> None:
    found = timeline(receipt(queue=1, run=1, exit=1, total=3), 0, 3 * S)
    assert failed_phase(Outcome(**outcome), found) == phase
    assert failed_phase(Outcome(error_type="Overloaded"), []) == ""
