"""A supervisor that stops, whatever comes at that moment."""

from __future__ import annotations

import os
import signal
import time

from process.resident_calls import result

from flashpool.pool import resident_room
from flashpool.pool._child import processes


def test_spares_that_die_as_it_stops_are_no_error(make_live) -> None:
    live = make_live(slots=4).ready()
    complaints = []
    live.loop.set_exception_handler(lambda _loop, context: complaints.append(context))
    for started in [live.start("def f():\n    import time; time.sleep(0.2)") for _ in range(4)]:
        started.wait()
    live.until(lambda: live.stats().slots.busy == 0 and live.zygote().spares > 3)
    spares = processes.children(live.zygote().pid)
    for spare in spares:
        os.kill(spare, signal.SIGKILL)
    # The loop does not run meanwhile: it hears of them when it stops already.
    deadline = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{pid}") for pid in spares):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    live.run(live.supervisor.stop())
    assert not complaints


def test_a_measure_that_failed_does_not_keep_it_from_stopping(make_live, monkeypatch) -> None:
    def fails(_pids: object) -> None:
        raise RuntimeError("no thread to be had")

    monkeypatch.setattr(resident_room, "_exact", fails)
    live = make_live(instances_mb=1).ready()
    result(live, "a", "inc")
    room = live.supervisor._parts.residency.room
    live.until(lambda: room._measuring is not None and room._measuring.done())
    live.run(live.supervisor.stop())
