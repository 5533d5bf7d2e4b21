"""Memory checks of processes so large that the kernel answers slowly."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from process.resident_calls import begin, run, thing

from flashpool.pool.workers.ends import memory
from support.live import Live, Started

TAKES = "block = bytearray(200 << 20)"
HOLDS = f"def f():\n    import time; {TAKES}; time.sleep(30)"


class Kernel:
    """A scripted kernel: the exact memory use is returned only when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers = threading.Event()
        self.asked: list[int] = []
        self.looks = 0
        self._exact, self._roughly = memory.proportional, memory._resident
        monkeypatch.setattr(memory, "proportional", self.exact)
        monkeypatch.setattr(memory, "_resident", self.roughly)

    def exact(self, pid: int) -> int:
        self.asked.append(pid)
        assert self.answers.wait(15), "the loop waits for the kernel"
        return self._exact(pid)

    def roughly(self, pid: int) -> int:
        self.looks += pid in self.asked
        return self._roughly(pid)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    kernel = Kernel(monkeypatch)
    yield kernel
    kernel.answers.set()


def ends_by_one_measure(live: Live, kernel: Kernel, started: Started) -> None:
    """Check that other calls are served during the measurement, and rough checks continue."""
    live.until(lambda: kernel.asked)
    assert live.call("def f(): return 1").ok
    live.until(lambda: kernel.looks > 3)
    assert len(kernel.asked) == 1
    kernel.answers.set()
    assert started.wait().error_type == "OutOfMemory"


def test_a_measurement_blocks_nothing_and_is_not_started_twice(live: Live, kernel: Kernel) -> None:
    started = live.start(HOLDS, memory_mb=50)
    ends_by_one_measure(live, kernel, started)


def test_measuring_a_constructor_blocks_nothing(live: Live, kernel: Kernel) -> None:
    code = f"class Thing:\n    def __init__(self):\n        import time; {TAKES}; time.sleep(30)"
    started = begin(live, "a", "inc", code=code, memory_mb=50)
    ends_by_one_measure(live, kernel, started)


def test_each_of_two_calls_of_an_instance_has_its_own_limit(live: Live, kernel: Kernel) -> None:
    code = thing(f"async def hold(self):\n    import asyncio; {TAKES}; await asyncio.sleep(30)")
    run(live, "a", "inc", code=code)
    # By the rough figure both exceed their limits; by the exact one only the second does.
    larger = begin(live, "a", "hold", code=code, memory_mb=150)
    live.until(lambda: kernel.asked)
    smaller = begin(live, "a", "hold", code=code, memory_mb=50)
    live.until(lambda: kernel.looks > 6)
    kernel._exact = lambda _pid: 100 << 20
    kernel.answers.set()
    assert smaller.wait().error_type == "OutOfMemory"
    assert larger.wait().error_type == "ResidentLost"


def test_a_late_measurement_ends_nothing(live: Live, kernel: Kernel, tmp_path) -> None:
    complaints = []
    live.loop.set_exception_handler(lambda _loop, context: complaints.append(context))
    go = tmp_path / "go"
    code = f"import os, time\ndef f():\n    {TAKES}\n    while not os.path.exists({str(go)!r}): time.sleep(.01)"
    started = live.start(code, memory_mb=50)
    live.until(lambda: kernel.asked)
    go.touch()
    assert started.wait().ok
    other = live.start(code.replace(str(go), f"{go}-on"), memory_mb=500)
    kernel.answers.set()
    live.until(lambda: not live.supervisor._components.calls.memory_watch.measures)
    os.rename(go, f"{go}-on")
    assert other.wait().ok
    assert not complaints


def test_the_supervisor_stops_during_a_measurement(live: Live, kernel: Kernel) -> None:
    started = live.start(HOLDS, memory_mb=50)
    live.until(lambda: kernel.asked)
    live.run(live.supervisor.stop())
    assert started.wait().error_type == "Cancelled"


def test_the_limit_holds_if_no_thread_can_be_started(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("asyncio.to_thread", no_thread)
    assert live.call(HOLDS, memory_mb=50).error_type == "OutOfMemory"
