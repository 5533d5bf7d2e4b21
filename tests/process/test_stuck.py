"""Processes that cannot be killed now: one that waits for a hanging volume outlives SIGKILL.

Each affects its own call only: the zygote, other calls and instances continue.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from process.resident_calls import begin, result

from flashpool.pool.workers.ends import watchdog
from support.hanging_file import HangingFile
from support.live import Live, alive

NEXT = "def f(): return 'fine'"


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[HangingFile]:
    one = HangingFile(tmp_path / "volume")
    yield one
    one.close()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "STOP_MARGIN_S", 0.5)


def touches(volume: HangingFile, then: str = "") -> str:
    return f"import os\ndef f():\n    print('here', flush=True)\n    os.path.exists({volume.file!r}){then}"


def test_a_call_that_cannot_be_killed_fails_alone(
    make_live: Callable[..., Live], volume: HangingFile
) -> None:
    live = make_live(slots=3).ready()
    assert result(live, "kept", "inc") == result(live, "kept", "inc") - 1
    zygote = live.zygote().pid
    neighbour = live.start(
        "def f():\n    import time\n    while True: print('on', flush=True); time.sleep(0.05)"
    )
    neighbour.wait_for_output(b"on")
    stuck = live.start(touches(volume), run_s=0.3)
    worker = stuck.pid
    outcome = stuck.wait()
    assert outcome.error_type == "Timeout"
    assert f"process {worker} cannot be killed now" in outcome.error
    assert outcome.details["phase"] == "run"
    assert outcome.details["stuck_pid"] == worker
    assert outcome.output.startswith(b"here")

    assert live.zygote().pid == zygote
    (shown,) = live.stats().stuck
    assert (shown.worker, shown.pids, shown.state) == (worker, [worker], "D")
    assert (shown.call, shown.label) == (stuck.id, "f")
    assert live.stats().slots.busy == 2, "the neighbour's and its own"
    assert not neighbour.sink.future.done()
    assert live.value(NEXT) == "fine"
    assert result(live, "kept", "inc") == 3, "an instance keeps its state"

    volume.release()
    live.until(lambda: not alive(worker))
    live.until(lambda: not live.stats().stuck and live.stats().slots.busy == 1)
    assert live.zygote().pid == zygote
    live.supervisor.cancel(neighbour.id)
    assert neighbour.wait().error_type == "Cancelled"


def test_the_slot_of_a_call_that_cannot_be_killed_stays_taken(
    make_live: Callable[..., Live], volume: HangingFile
) -> None:
    live = make_live(slots=1).ready()
    assert live.start(touches(volume), run_s=0.2).wait().error_type == "Timeout"
    waits = live.start(NEXT)
    assert live.call(NEXT, queue_s=0.5).details["phase"] == "queue"
    volume.release()
    assert waits.wait().ok


def test_an_unkillable_process_left_by_a_call_keeps_only_its_slot(
    make_live: Callable[..., Live], volume: HangingFile
) -> None:
    live = make_live(slots=2).ready()
    leaves = f"""
import os
def f():
    up, told = os.pipe()
    if not os.fork():
        os.write(told, b".")
        os.path.exists({volume.file!r})
        os._exit(0)
    os.read(up, 1)
    block = bytearray(300 << 20)  # its slot is not given back early
"""
    assert live.call(leaves).ok
    live.until(lambda: volume.waiting == 1)
    live.until(lambda: live.stats().stuck)
    (shown,) = live.stats().stuck
    assert len(shown.pids) == 1
    assert shown.state == "D"
    daemon = "import subprocess\ndef f(): subprocess.Popen(['sleep', '60']); block = bytearray(300 << 20)"
    for _ in range(3):
        assert live.call(daemon).ok
        live.until(lambda: live.stats().slots.busy == 1)
    volume.release()
    live.until(lambda: not live.stats().stuck and live.stats().slots.busy == 0)


def test_an_instance_that_cannot_be_killed_is_replaced(
    make_live: Callable[..., Live], volume: HangingFile
) -> None:
    live = make_live(slots=3).ready()
    code = (
        "import os\nclass Thing:\n    def inc(self): return os.getpid()\n"
        f"    def hang(self): os.path.exists({volume.file!r})"
    )
    first = result(live, "a", "inc", code=code)
    outcome = begin(live, "a", "hang", code=code, run_s=0.3).wait()
    assert outcome.error_type == "Timeout"
    assert "cannot be killed now" in outcome.error
    outcome = begin(live, "a", "inc", code=code).wait()
    assert outcome.ok, outcome.error
    assert outcome.instance.generation == 2
    assert result(live, "a", "inc", code=code) != first
    (shown,) = live.stats().stuck
    assert (shown.worker, shown.label) == (first, "a")
    volume.release()
    live.until(lambda: not live.stats().stuck)
    assert result(live, "a", "inc", code=code) != first, "its own end is nothing to the next one"
    assert len(live.stats().instances) == 1


def test_a_stop_does_not_wait_for_a_process_that_cannot_be_killed(
    make_live: Callable[..., Live], volume: HangingFile
) -> None:
    live = make_live(slots=1).ready()
    started = live.start(touches(volume))
    live.until(lambda: volume.waiting == 1)
    live.run(asyncio.wait_for(live.supervisor.stop(), 30))
    assert started.wait().error_type == "Cancelled"
    volume.release()


def test_a_zygote_killed_above_a_stuck_worker_is_restarted(
    make_live: Callable[..., Live], volume: HangingFile
) -> None:
    live = make_live(slots=2).ready()
    started = live.start(touches(volume))
    live.until(lambda: volume.waiting == 1)
    os.kill(live.zygote().pid, signal.SIGKILL)
    assert started.wait().error_type == "WorkerCrashed"
    assert live.value(NEXT) == "fine"
    volume.release()


def test_a_zygote_that_cannot_be_killed_itself_fails_its_calls(
    make_live: Callable[..., Live], volume: HangingFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "KILLED_S", 0.5)
    live = make_live(start_timeout_s=1.0, workdir=volume.file)
    outcome = live.call(NEXT)
    assert outcome.error_type == "EnvironmentStartFailed"
    assert "did not come up within 1 s" in outcome.error
    volume.release()
    assert live.value(NEXT) == "fine"
