"""More instances, calls and memory than the limits allow; the end of the pool."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from process.resident_calls import (
    THING,
    begin,
    closing,
    instances,
    notes,
    result,
    run,
    thing,
    value,
)

from support.live import Live

Make = Callable[..., Live]


def test_many_calls_that_each_want_a_new_instance_run_in_order(live: Live) -> None:
    calls = [
        begin(live, "a", "inc", made_with=(i,), want={"anew": True, "arguments": i})
        for i in range(10)
    ]
    assert [value(call.wait()) for call in calls] == list(range(1, 11))
    outcome = run(live, "a", "inc", want={"arguments": 9})
    assert value(outcome) == 11
    assert outcome.instance is not None
    assert (outcome.instance.generation, outcome.instance.same_arguments) == (10, True)


@pytest.mark.slow
def test_calls_of_eight_instances_work_with_a_limit_of_four(make_live: Make) -> None:
    """State is lost only with its generation, and the instance called longest ago is evicted."""
    live = make_live(instances=4, slots=4).ready()
    totals: dict[str, tuple[int, int]] = {}
    recent: list[str] = []
    # A few instances at a time, so that some calls find theirs and some do not.
    order = [f"i{(i // 7 + i % 5) % 8}" for i in range(300)]
    hits = 0
    for name in order:
        there = set(instances(live))
        outcome = run(live, name, "inc")
        assert outcome.instance is not None
        generation = outcome.instance.generation
        before, was = totals.get(name, (0, 0))
        assert value(outcome) == (before + 1 if generation == was else 1)
        if name in there:
            assert generation == was
            hits += 1
        elif len(there) == 4:
            (gone,) = there - set(instances(live))
            assert gone == recent[0], "the one that was called longest ago"
        totals[name] = value(outcome), generation
        recent = [one for one in recent if one != name and one in instances(live)] + [name]
        assert len(instances(live)) <= 4
    assert 90 < hits < 297


def test_a_thousand_calls_at_once_succeed(make_live: Make) -> None:
    live = make_live(instances=4, slots=2, queue_limit=None).ready()
    calls = [begin(live, f"i{i % 8}", "inc") for i in range(1000)]
    found: dict[tuple[str, int], list[int]] = {}
    for call in calls:
        outcome = call.wait(60)
        assert outcome.instance is not None, outcome
        key = (outcome.instance.instance, outcome.instance.generation)
        found.setdefault(key, []).append(value(outcome))
    assert sum(map(len, found.values())) == 1000
    for values in found.values():
        assert values == list(range(1, len(values) + 1)), "in the order of their arrival"


def test_waiting_for_room_has_a_limit(make_live: Make) -> None:
    live = make_live(instances=1).ready()
    busy = begin(live, "a", "sleep", 3)
    live.until(lambda: instances(live)["a"].running == 1)
    outcome = run(live, "b", "inc", queue_s=0.2)
    assert outcome.error_type == "Timeout"
    assert outcome.details["phase"] == "queue"
    waits = begin(live, "b", "inc")
    assert value(busy.wait()) == 0
    assert value(waits.wait()) == 1


def test_the_queue_is_bounded_for_instances_too(make_live: Make) -> None:
    from flashpool.pool.errors import Overloaded

    live = make_live(slots=1, queue_limit=2).ready()
    busy = begin(live, "a", "sleep", 1)
    live.until(lambda: instances(live).get("a") and instances(live)["a"].running == 1)
    waiting = [begin(live, "a", "inc"), begin(live, "b", "inc")]
    with pytest.raises(Overloaded):
        begin(live, "c", "inc")
    with pytest.raises(Overloaded):
        begin(live, "a", "inc")
    queue = live.stats().queue
    assert queue.depth == sum(one.depth for one in queue.by_phase.values()) == 2
    assert queue.by_phase["instance"].depth >= 1
    assert (queue.refused, queue.by_phase["instance"].refused) == (2, 2)
    assert [value(call.wait()) for call in (busy, *waiting)] == [0, 1, 1]


def test_waiting_calls_that_need_the_existing_instance_fail_when_it_dies(live: Live) -> None:
    pid = result(live, "a", "pid")
    busy = begin(live, "a", "sleep", 60)
    live.until(lambda: instances(live)["a"].running == 1)
    insists = begin(live, "a", "inc", want={"must_exist": True})
    os.kill(pid, signal.SIGKILL)
    assert busy.wait().error_type == "WorkerCrashed"
    lost = insists.wait()
    assert lost.error_type == "InstanceLost"
    assert "SIGKILL" in (lost.error or "")


HOG = THING.replace("self.n = start", "self.n = start; self.held = b'x' * (start << 20)")


def test_memory_is_limited_during_construction_and_calls(live: Live) -> None:
    code = thing(
        "def hold(self, mb):\n    held = b'x' * (mb << 20)\n    import time\n    time.sleep(20)",
        base=HOG.replace("self.held", "import time; self.held").replace(
            "(start << 20)", "(start << 20); time.sleep(20 * (start > 100))"
        ),
    )
    made = run(live, "a", "inc", code=code, made_with=(400,), memory_mb=200)
    assert made.error_type == "OutOfMemory", made
    result(live, "b", "inc", code=code, memory_mb=200)
    sibling = begin(live, "b", "nap", 60, code=code)
    called = begin(live, "b", "hold", 400, code=code, memory_mb=200)
    live.supervisor.cancel(sibling.id, "not needed: the other one runs alone")
    assert called.wait().error_type == "OutOfMemory"
    assert result(live, "b", "inc", code=code) == 1


def test_the_memory_of_all_instances_is_limited(make_live: Make) -> None:
    live = make_live(instances=8, instances_mb=500).ready()
    for name in "abc":
        result(live, name, "inc", code=HOG, made_with=(200,))
    live.until(lambda: set(instances(live)) == {"b", "c"})
    time.sleep(1.5)
    live.until(lambda: all(one.memory_mb > 190 for one in instances(live).values()))
    assert set(instances(live)) == {"b", "c"}, "the two fit"


def test_a_stopped_spare_does_not_prevent_creating_an_instance(
    make_live: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flashpool.pool.workers.ends.watchdog.BEGIN_S", 0.5)
    live = make_live().ready()
    live.value("def f(): return 1")
    spares = live.until(
        lambda: [w.pid for w in live.supervisor._components.worker_set if w.running is None]
    )
    for pid in spares:
        os.kill(pid, signal.SIGSTOP)
    assert value(begin(live, "a", "inc").wait()) == 1
    assert instances(live)["a"].generation == 1


def test_idle_instances_are_closed_when_forks_fail(
    make_live: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = make_live(max_spares=1).ready()
    for name in "abc":
        result(live, name, "inc")
    zygote_set, reports = live.supervisor._components.zygote_set, live.supervisor._reports
    fork = zygote_set.fork

    def refuse(key: Any, number: int, *others: Any) -> None:
        if len(instances(live)) > 1:
            live.loop.call_soon(reports.not_forked, zygote_set[key], number)
        else:
            fork(key, number, *others)

    monkeypatch.setattr(zygote_set, "fork", refuse)
    calls = [live.start("def f(): return 7") for _ in range(6)]
    assert all(call.wait().ok for call in calls)
    assert set(instances(live)) == {"c"}


def test_a_drain_closes_idle_instances_and_waits_for_busy_ones(
    make_live: Make, tmp_path: Path
) -> None:
    live = make_live(grace_s=5).ready()
    code = closing(tmp_path / "notes", "def close(self):\n    self.note(f'close {self.n}')")
    result(live, "idle", "inc", 5, code=code)
    busy = begin(live, "busy", "sleep", 1, code=code)
    stuck = begin(live, "stuck", "sleep", 60, code=code)
    live.until(lambda: sum(one.running for one in instances(live).values()) == 2)
    assert live.run(live.supervisor.drain(4)) is False
    assert value(busy.wait()) == 0
    live.run(asyncio.wait_for(live.supervisor.stop("it stops"), 30))
    assert stuck.wait().error_type == "Cancelled"
    assert {"close 5", "close 0"} <= set(notes(tmp_path / "notes"))


def test_memory_checks_stop_when_a_constructor_dies(live: Live) -> None:
    code = "import os\nclass Thing:\n    def __init__(self): os._exit(3)\n"
    outcome = run(live, "a", "inc", code=code, memory_mb=500)
    assert outcome.error_type == "WorkerCrashed"
    live.until(lambda: not instances(live))
    live.run(asyncio.sleep(0.2))
    assert "_watch_load" not in repr([one for one in live.loop._scheduled if not one.cancelled()])
