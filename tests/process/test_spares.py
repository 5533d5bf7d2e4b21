"""Spares that are stopped, stuck or killed before their call begins: the call is retried."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable

import pytest
from process.resident_calls import result

from flashpool.pool import Pool
from flashpool.pool._child import processes, wire
from flashpool.pool.workers.channel import WorkerChannel
from flashpool.pool.workers.ends import watchdog
from support.live import alive

NEXT = "def f(): return 'fine'"
#: Replaces `watchdog.BEGIN_S`; a healthy spare begins sooner, even on a busy machine.
SHORT_S = 1.0


def stop_spares(live) -> list[int]:
    """Stop all spares, as a process outside might."""
    live.until(lambda: live.zygote().spares == 2)
    spares = processes.children(live.zygote().pid)
    for pid in spares:
        os.kill(pid, signal.SIGSTOP)
    return spares


def test_a_call_sent_to_stopped_spares_is_retried(make_live, monkeypatch):
    monkeypatch.setattr(watchdog, "BEGIN_S", SHORT_S)
    live = make_live(slots=1).ready()
    spares = stop_spares(live)
    outcome = live.call(NEXT)
    assert outcome.ok, outcome.error
    assert outcome.receipt.attempts == 2, "the other one is found out with the first"
    live.until(lambda: not any(map(alive, spares)))


def test_a_large_call_partly_read_by_a_stopped_spare_is_retried(make_live, monkeypatch):
    monkeypatch.setattr(watchdog, "BEGIN_S", SHORT_S)
    live = make_live(slots=1).ready()
    stop_spares(live)
    assert live.value("def f(x): return len(x)", bytes(5_000_000)) == 5_000_000


def test_a_time_limit_does_not_include_attempts_that_never_began(make_live):
    live = make_live(slots=1).ready()
    stop_spares(live)
    outcome = live.call(NEXT, run_s=1.5)
    assert outcome.ok, outcome.error


def test_a_spare_that_is_being_ended_gets_no_call(make_live):
    live = make_live(slots=1).ready()
    live.until(lambda: live.zygote().spares == 2)
    worker_set = live.supervisor._components.worker_set
    for spare in list(worker_set):
        worker_set._on_bad_frame(spare, "as if something had written to its channel")
    outcome = live.call(NEXT)
    assert outcome.ok, outcome.error
    assert outcome.receipt.attempts == 1


def test_a_long_call_is_not_mistaken_for_a_stuck_one(make_live, monkeypatch):
    monkeypatch.setattr(watchdog, "BEGIN_S", SHORT_S)
    live = make_live(slots=1).ready()
    outcome = live.call("import time\ndef f():\n    time.sleep(2.5); return 1")
    assert outcome.ok, outcome.error
    assert outcome.receipt.attempts == 1


def test_a_call_that_no_worker_begins_fails_with_that_reason(make_live, monkeypatch):
    monkeypatch.setattr(watchdog, "BEGIN_S", SHORT_S)
    live = make_live(slots=1).ready()
    live.until(lambda: live.zygote().spares == 2)
    # No worker gets its call. (Stopping workers from outside would be too late for some.)
    monkeypatch.setattr(WorkerChannel, "send", lambda *message: None)
    outcome = live.call(NEXT)
    assert outcome.error_type == "WorkerCrashed"
    assert "no worker started the call" in outcome.error


def test_an_instance_that_cannot_be_sent_to_a_spare_is_created_elsewhere(live, monkeypatch):
    sent, send = [], WorkerChannel.send

    def fail_first(link: WorkerChannel, kind: int, *more: object) -> None:
        sent.append(kind)
        if len(sent) == 1:
            raise OSError(errno.ENOMEM, "no memory to be had")
        send(link, kind, *more)

    monkeypatch.setattr(WorkerChannel, "send", fail_first)
    assert result(live, "a", "inc") == 1
    assert sent == [wire.LOAD, wire.LOAD, wire.CALL]


def test_a_call_with_arrays_is_retried_too():
    numpy = pytest.importorskip("numpy")
    with Pool(max_workers=1) as pool:
        assert pool.submit(abs, -1).result() == 1
        zygote = pool.stats().zygotes[0].pid
        wait_until(lambda: len(waiting_in(zygote)) == pool.stats().zygotes[0].spares == 2)
        spares = waiting_in(zygote)
        for pid in spares:
            os.kill(pid, signal.SIGSTOP)
        future = pool.submit(numpy.sum, numpy.ones(2_000_000))
        wait_until(future.running)
        for pid in spares:
            os.kill(pid, signal.SIGKILL)
        assert future.result(40) == 2_000_000


def waiting_in(zygote: int) -> list[int]:
    return [pid for pid in processes.children(zygote) if alive(pid)]


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)
