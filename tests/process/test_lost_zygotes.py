"""Calls whose zygote dies: a call is retried unless its worker had read it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from process.resident_calls import begin

from flashpool.pool._child import processes, wire
from flashpool.pool.calls import Provision
from flashpool.pool.workers.ends import watchdog
from support.live import Live, alive

NEXT = "def f(): return 'fine'"


def wait_without_the_loop(holds: Callable[[], object]) -> None:
    """Wait without running the loop, as in a paused program: all events are seen at once later."""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def kill_zygote(live: Live) -> None:
    """Kill the zygote and all processes below it, before the supervisor notices."""
    zygote = live.zygote().pid
    guard = processes.parent(zygote)
    os.kill(zygote, signal.SIGKILL)
    wait_without_the_loop(lambda: not alive(guard))


def test_a_call_sent_to_a_dead_spare_is_retried(live: Live) -> None:
    live.until(lambda: live.zygote().spares == 2)
    kill_zygote(live)
    outcome = live.call(NEXT)
    assert outcome.ok, outcome.error
    assert outcome.receipt.attempts == 2


def test_a_call_that_its_worker_has_not_read_is_retried(make_live) -> None:
    live = make_live(slots=1).ready()
    live.until(lambda: live.zygote().spares == 2)
    for spare in processes.children(live.zygote().pid):
        os.kill(spare, signal.SIGSTOP)
    started = live.start(NEXT)
    kill_zygote(live)
    outcome = started.wait()
    assert outcome.ok, outcome.error
    assert outcome.receipt.attempts == 2


def test_an_instance_assigned_to_a_dead_spare_is_created_elsewhere(live: Live) -> None:
    live.until(lambda: live.zygote().spares == 2)
    kill_zygote(live)
    # The second call joins the instance's wait queue, which the first has started.
    for started in [begin(live, "a", "inc") for _ in range(2)]:
        outcome = started.wait()
        assert outcome.ok, outcome.error
        assert outcome.instance.generation == 1


def test_an_instance_whose_load_was_not_read_is_created_elsewhere(make_live) -> None:
    live = make_live(slots=1).ready()
    live.until(lambda: live.zygote().spares == 2)
    for spare in processes.children(live.zygote().pid):
        os.kill(spare, signal.SIGSTOP)
    started = begin(live, "a", "inc")
    kill_zygote(live)
    outcome = started.wait()
    assert outcome.ok, outcome.error


def test_an_instance_whose_constructor_had_begun_is_not_retried(live: Live, tmp_path: Path) -> None:
    made = tmp_path / "made"
    slow = f"class Thing:\n    def __init__(self):\n        open({str(made)!r}, 'a').write('1')"
    started = begin(live, "a", "inc", code=f"{slow}\n        import time; time.sleep(60)")
    live.until(lambda: made.exists() and made.read_text() == "1")
    kill_zygote(live)
    outcome = started.wait()
    assert outcome.error_type == "WorkerCrashed"
    assert "lost together with the zygote" in outcome.error
    assert made.read_text() == "1"


def test_an_instance_whose_load_is_never_read_is_given_up(make_live, monkeypatch) -> None:
    live = make_live(slots=1).ready()
    worker_set = live.supervisor._components.worker_set
    sent, send = [], worker_set.send

    def kill_first(worker: object, kind: int, *more: object) -> None:
        sent.append(kind)
        kill_zygote(live)
        send(worker, kind, *more)

    monkeypatch.setattr(worker_set, "send", kill_first)
    outcome = begin(live, "a", "inc").wait()
    assert outcome.error_type == "WorkerCrashed"
    assert "3 times" in outcome.error
    assert sent == [wire.LOAD] * 3


def test_a_retried_call_keeps_its_limit_in_the_queue(live: Live, monkeypatch) -> None:
    live.until(lambda: live.zygote().spares == 2)
    kill_zygote(live)
    # From now on starts of zygotes neither succeed nor fail.
    monkeypatch.setattr(live.supervisor._components.zygote_set, "start", lambda _key: True)
    outcome = live.start(NEXT, queue_s=0.5).wait()
    assert outcome.error_type == "Timeout"
    assert outcome.details["phase"] == "queue"


def test_a_call_that_its_worker_has_read_is_not_retried(live: Live) -> None:
    started = live.start("def f():\n    import time; print('here', flush=True); time.sleep(60)")
    started.wait_for_output(b"here")
    kill_zygote(live)
    outcome = started.wait()
    assert outcome.error_type == "WorkerCrashed"
    assert "lost together with the zygote" in outcome.error


def test_items_and_output_sent_before_the_death_count(live: Live, tmp_path: Path) -> None:
    go = tmp_path / "go"
    code = f"""
import os, time
def f():
    while not os.path.exists({str(go)!r}):
        time.sleep(0.005)
    # More than is read at once, less than a socket holds.
    for i in range(2):
        yield "x" * 26_000
    print("said")
"""
    zygote = live.zygote().pid
    started = live.start(code, call={"stream": True})
    worker = started.pid
    os.kill(zygote, signal.SIGSTOP)  # so that the zygote reports no death
    go.touch()
    wait_without_the_loop(lambda: not alive(worker))
    kill_zygote(live)
    outcome = started.wait()
    assert outcome.ok, outcome.error
    assert len(started.sink.items) == 2
    assert b"said" in outcome.output


def test_a_retiring_zygote_that_is_stopped_delays_no_call(make_live, monkeypatch) -> None:
    monkeypatch.setattr(watchdog, "ANSWER_S", 0.5)
    live = make_live(max_spares=0).ready()  # with spares, the stop would be noticed by them
    live.supervisor.environments.add("other", sys.executable)
    in_other = {"provision": Provision(environment="other")}
    assert live.call(NEXT, call=in_other).ok
    live.until(lambda: live.supervisor._components.scheduler.is_idle("other"))
    (first,) = (one.pid for one in live.stats().zygotes if one.environment == "other")
    os.kill(first, signal.SIGSTOP)
    assert live.supervisor.environments.retire_idle("other")
    outcome = live.call(NEXT, call=in_other)
    assert outcome.ok, outcome.error
    assert not alive(first)
