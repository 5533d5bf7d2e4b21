"""A supervisor stops, whatever happens at that moment."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from process.resident_calls import begin, closing, notes, result

from flashpool.pool._child import processes
from flashpool.pool.residents import pressure
from support.live import alive

#: Saves its state on SIGTERM, which takes a moment.
SAVES = """
import os, signal, sys, time
def f(path):
    def save(*_):
        time.sleep(0.3)
        with open(path, "a") as file:
            file.write("saved")
        sys.exit()
    signal.signal(signal.SIGTERM, save)
    print("here", flush=True)
    while True:
        time.sleep(0.01)
"""


def test_spares_that_die_during_the_stop_cause_no_error(make_live) -> None:
    live = make_live(slots=4).ready()
    complaints = []
    live.loop.set_exception_handler(lambda _loop, context: complaints.append(context))
    for started in [live.start("def f():\n    import time; time.sleep(0.2)") for _ in range(4)]:
        started.wait()
    live.until(lambda: live.stats().slots.busy == 0 and live.zygote().spares > 3)
    spares = processes.children(live.zygote().pid)
    for spare in spares:
        os.kill(spare, signal.SIGKILL)
    # The loop is blocked meanwhile, so it learns of the deaths when it is already stopping.
    deadline = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{pid}") for pid in spares):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    live.run(live.supervisor.stop())
    assert not complaints


def test_a_failed_memory_measurement_does_not_prevent_the_stop(make_live, monkeypatch) -> None:
    def fails(_pids: object) -> None:
        raise RuntimeError("no thread to be had")

    monkeypatch.setattr(pressure, "_exact", fails)
    live = make_live(instances_mb=1).ready()
    result(live, "a", "inc")
    room = live.supervisor._components.residents.pressure
    live.until(lambda: room._measuring is not None and room._measuring.done())
    live.run(live.supervisor.stop())


@pytest.mark.parametrize("when", ["running", "cancelled"])
def test_running_calls_get_sigterm_and_the_grace(make_live, tmp_path: Path, when: str) -> None:
    live = make_live(grace_s=20).ready()
    started = live.start(SAVES, str(tmp_path / "state"))
    started.wait_for_output(b"here")
    if when == "cancelled":
        live.supervisor.cancel(started.id)
    since = time.monotonic()
    live.run(live.supervisor.stop())
    assert (tmp_path / "state").read_text() == "saved"
    assert time.monotonic() - since < 15, "it waits for nobody who is gone"
    assert started.wait().error_type == "Cancelled"


def test_calls_that_ignore_sigterm_are_killed_after_the_grace(make_live) -> None:
    live = make_live(grace_s=1.0).ready()
    ignores = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    started = live.start(
        f"import signal, time\ndef f():\n    {ignores}; print('here', flush=True); time.sleep(60)"
    )
    started.wait_for_output(b"here")
    pid, since = started.pid, time.monotonic()
    live.run(live.supervisor.stop())
    assert 0.9 < time.monotonic() - since < 15
    assert not alive(pid)


def test_calls_of_instances_are_ended_and_then_the_instances_close(
    make_live, tmp_path: Path
) -> None:
    live = make_live(grace_s=20).ready()
    code = closing(
        tmp_path / "notes",
        "async def nap(self):\n    import asyncio\n    print('here', flush=True)\n"
        "    try:\n        await asyncio.sleep(60)\n"
        "    except asyncio.CancelledError:\n        self.note('cancelled'); raise",
        "def close(self):\n    self.note('close')",
    )
    started = begin(live, "a", "nap", code=code)
    started.wait_for_output(b"here")
    result(live, "idle", "inc", code=code)
    since = time.monotonic()
    live.run(live.supervisor.stop())
    assert time.monotonic() - since < 15
    assert sorted(notes(tmp_path / "notes")) == ["cancelled", "close", "close", "del", "del"]
    assert started.wait().error_type == "Cancelled"


def test_an_instance_under_construction_does_not_delay_the_stop(make_live, tmp_path: Path) -> None:
    live = make_live(grace_s=20).ready()
    made = tmp_path / "made"
    code = f"class Thing:\n    def __init__(self):\n        open({str(made)!r}, 'a'); import time; time.sleep(60)"
    started = begin(live, "a", "inc", code=code)
    waits = begin(live, "b", "inc", code=code, environment=None)
    live.until(made.exists)
    since = time.monotonic()
    live.run(live.supervisor.stop())
    assert time.monotonic() - since < 15
    assert {started.wait().error_type, waits.wait().error_type} == {"Cancelled"}
