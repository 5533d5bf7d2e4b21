"""Exceptions in the pool's own callbacks: each is counted and ends only what it concerns."""

from __future__ import annotations

import logging
import os
import signal
from typing import Any

import pytest
from process.resident_calls import begin, result

from flashpool.pool.scheduling.commands import Dispatch, ForkWorkers, StartZygote
from flashpool.pool.workers.ends import watchdog
from support.live import Live

NEXT = "def f(): return 'fine'"
SLEEPS = "def f():\n    import time; print('on', flush=True); time.sleep(60)"


class Mistake(Exception):
    """Raised where no exception should occur."""


def fails_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, which: Any = None) -> None:
    """Make a method raise at its next call, or at the next for which ``which`` is true."""
    real = getattr(owner, name)
    left = [1]

    def fails(*arguments: Any, **more: Any) -> Any:
        if left and (which is None or which(*arguments)):
            left.pop()
            raise Mistake
        return real(*arguments, **more)

    monkeypatch.setattr(owner, name, fails)


def mistakes(live: Live) -> int:
    return live.stats().supervisor.callback_errors


def is_fine(live: Live) -> None:
    assert live.value(NEXT) == "fine"
    live.until(lambda: live.stats().slots.busy == 0)


@pytest.mark.parametrize("name", ["result", "died", "worker_gone", "exit_over"])
def test_an_exception_while_handling_a_workers_message_or_exit(
    live: Live, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    neighbour = live.start(SLEEPS)
    neighbour.wait_for_output(b"on")
    fails_once(monkeypatch, live.supervisor._reports, name)
    code = "def f():\n    import os; os._exit(3)" if name == "died" else NEXT
    outcome = live.call(code)
    if name != "worker_gone":
        assert outcome.error_type == "WorkerCrashed"
        assert "Mistake" in outcome.details["internal"]
    live.until(lambda: mistakes(live) == 1)
    assert not neighbour.sink.future.done()
    assert live.value(NEXT) == "fine"
    assert mistakes(live) == 1
    live.supervisor.cancel(neighbour.id)
    neighbour.wait()


def test_an_exception_in_the_sink_of_a_call(live: Live) -> None:
    started = live.start("def f():\n    print('x', flush=True); import time; time.sleep(60)")

    def fails(_chunk: bytes, **_: Any) -> None:
        raise Mistake

    started.sink.output = fails  # type: ignore[method-assign]
    outcome = started.wait()
    assert outcome.error_type == "WorkerCrashed"
    assert mistakes(live) == 1
    is_fine(live)


def test_an_exception_while_handling_a_zygotes_message(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = live.zygote().pid
    running = live.start(SLEEPS)
    running.wait_for_output(b"on")
    fails_once(monkeypatch, live.supervisor._components.worker_set, "welcome")
    for _ in range(3):
        assert live.value(NEXT) == "fine", "spares take them, or those of the next zygote"
    live.until(lambda: mistakes(live) == 1)
    assert running.wait().error_type == "WorkerCrashed"
    live.until(lambda: live.supervisor.ready and live.zygote().pid != first)
    is_fine(live)


@pytest.mark.parametrize("kind", [Dispatch, ForkWorkers, StartZygote])
def test_an_exception_while_carrying_out_a_command(
    live: Live, monkeypatch: pytest.MonkeyPatch, kind: type
) -> None:
    actions = live.supervisor._actions
    fails_once(monkeypatch, actions, "_do_one", lambda command: isinstance(command, kind))
    if kind is StartZygote:
        os.kill(live.zygote().pid, signal.SIGKILL)
        live.until(lambda: mistakes(live) == 1)
        live.until(lambda: live.supervisor.ready)
    else:
        outcomes = [live.start(NEXT) for _ in range(8)]
        for one in outcomes:
            one.wait()
        live.until(lambda: mistakes(live) == 1)
    live.until(lambda: live.supervisor.ready)
    is_fine(live)
    assert mistakes(live) == 1


def test_an_exception_at_a_calls_time_limit(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    fails_once(monkeypatch, live.supervisor._components.worker_set, "catch_up")
    outcome = live.start(SLEEPS, run_s=0.2).wait()
    assert outcome.error_type == "WorkerCrashed"
    assert "Mistake" in outcome.details["internal"]
    is_fine(live)


def test_an_exception_while_handling_an_instances_result(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert result(live, "a", "inc") == 1
    fails_once(monkeypatch, live.supervisor._components.residents.events, "_on_result")
    outcome = begin(live, "a", "inc").wait()
    assert outcome.error_type == "WorkerCrashed"
    assert result(live, "a", "inc") == 1, "made anew"
    assert mistakes(live) == 1


def test_an_exception_in_a_periodic_task(
    live: Live, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fails_once(monkeypatch, live.supervisor._components.scheduler, "tick")
    monkeypatch.setattr(watchdog, "BEGIN_S", 1.0)
    looked: list[int] = []
    monkeypatch.setattr(live.supervisor._components.watchdog, "check", lambda: looked.append(1))
    with caplog.at_level(logging.ERROR):
        live.until(lambda: looked)
    assert mistakes(live) == 1
    assert "what is done every second" in caplog.text
