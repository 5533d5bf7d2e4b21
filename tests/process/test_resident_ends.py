"""How class instances end: closed, killed, cancelled, poisoned."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

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

from support.live import Live, alive

Make = Callable[..., Live]


@pytest.mark.parametrize(
    ("methods", "expected"),
    [
        (["def close(self):\n    self.note('close')"], ["close", "del"]),
        (["async def close(self):\n    self.note('close')"], ["close", "del"]),
        (["async def aclose(self):\n    self.note('aclose')"], ["aclose", "del"]),
        (["def __exit__(self, *error):\n    self.note(f'exit {error}')"], None),
        (
            ["def close(self):\n    self.note('close')", "def __exit__(self, *e):\n    1/0"],
            ["close", "del"],
        ),
        (["def close(self):\n    self.note('close')\n    1/0"], ["close", "del"]),
        (["def close(self):\n    self.note('close')\n    raise SystemExit"], ["close", "del"]),
        ([], ["del"]),
    ],
)
def test_closing_calls_the_methods_of_the_class(
    make_live: Make, tmp_path: Path, methods: list[str], expected: list[str] | None
) -> None:
    live = make_live(instance_idle_s=0.1).ready()
    code = closing(tmp_path / "notes", *methods)
    pid = result(live, "a", "pid", code=code)
    live.until(lambda: not instances(live))
    assert not alive(pid)
    assert notes(tmp_path / "notes") == (expected or ["exit (None, None, None)", "del"])


def test_closing_cancels_tasks_before_the_instance_is_deleted(
    make_live: Make, tmp_path: Path
) -> None:
    code = closing(
        tmp_path / "notes",
        """
async def background(self):
    import asyncio
    async def tick():
        try:
            await asyncio.sleep(600)
        finally:
            self.note("cancelled")
    self.ticking = asyncio.create_task(tick())
async def close(self):
    self.note("close")
""",
    )
    live = make_live(instance_idle_s=0.1).ready()
    result(live, "a", "background", code=code)
    live.until(lambda: not instances(live))
    assert notes(tmp_path / "notes") == ["close", "cancelled", "del"]


def test_a_close_that_hangs_is_killed_after_the_grace(make_live: Make, tmp_path: Path) -> None:
    code = closing(
        tmp_path / "notes",
        "def close(self):\n    self.note('close')\n    import time\n    time.sleep(0.2)\n"
        "    self.note('had the grace')\n    time.sleep(600)",
    )
    live = make_live(instance_idle_s=0.1, grace_s=1.5).ready()
    pid = result(live, "a", "pid", code=code)
    live.until(lambda: notes(tmp_path / "notes"))
    # A call that arrives meanwhile gets the next instance.
    assert result(live, "a", "pid", code=code) != pid
    assert notes(tmp_path / "notes")[:2] == ["close", "had the grace"]
    assert not alive(pid)


def test_an_instance_killed_while_it_closes_is_replaced_at_once(
    make_live: Make, tmp_path: Path
) -> None:
    code = closing(
        tmp_path / "notes",
        f"def close(self):\n    hangs = not os.path.exists({str(tmp_path / 'notes')!r})\n"
        "    self.note('close')\n    time.sleep(600 * hangs)",
    )
    code = "import os, time\n" + code
    live = make_live(instance_idle_s=0.1, grace_s=60).ready()
    pid = result(live, "a", "pid", code=code)
    live.until(lambda: notes(tmp_path / "notes"))
    waits = begin(live, "a", "inc", code=code)
    os.kill(pid, signal.SIGKILL)
    assert value(waits.wait()) == 1, "long before the grace is over"


@pytest.mark.parametrize("who", ["worker", "zygote"])
@pytest.mark.parametrize("when", ["idle", "running", "overlapping", "loading"])
def test_an_instance_whose_worker_or_zygote_is_killed_is_replaced(
    live: Live, tmp_path: Path, who: str, when: str
) -> None:
    started = tmp_path / "pid"
    code = THING.replace(
        "self.n = start",
        "self.n = start; import os, time; "
        f"late = not os.path.exists({str(started)!r}); "
        f"open({str(started)!r}, 'w').write(str(os.getpid())); "
        f"time.sleep({30 if when == 'loading' else 0} * late)",
    )
    calls = []
    if when == "loading":
        calls = [begin(live, "a", "inc", code=code) for _ in range(2)]
        live.until(lambda: started.exists() and started.read_text())
    else:
        result(live, "a", "nap", 0, code=code)
    if when == "running":
        calls = [begin(live, "a", "sleep", 30, code=code)]
    elif when == "overlapping":
        calls = [begin(live, "a", "nap", 30, code=code) for _ in range(3)]
    if when in ("running", "overlapping"):
        live.until(lambda: instances(live)["a"].running == len(calls))
    behind = begin(live, "a", "inc", code=code) if when == "running" else None
    pid = int(started.read_text())
    os.kill(pid if who == "worker" else live.zygote().pid or 0, signal.SIGKILL)
    for call in calls:
        outcome = call.wait()
        assert outcome.error_type == "WorkerCrashed", outcome
        assert ("SIGKILL" if who == "worker" else "zygote") in (outcome.error or "")
    if behind is not None:
        assert value(behind.wait()) == 1
    else:
        live.until(lambda: not instances(live))
        assert result(live, "a", "inc", code=code) == 1
    assert instances(live)["a"].generation == 2


def test_an_endless_constructor_is_stopped_when_no_call_waits(live: Live) -> None:
    code = THING.replace("self.n = start", "print('begins', flush=True)\n        while True: pass")
    calls = [begin(live, "a", "inc", code=code) for _ in range(3)]
    pid = live.until(lambda: instances(live)["a"].pid)
    for call in calls:
        live.supervisor.cancel(call.id, "the client went away")
        assert call.wait().error_type == "Cancelled"
    live.until(lambda: not alive(pid))
    live.until(lambda: not instances(live))
    assert live.stats().slots.busy == 0


def test_an_instance_that_corrupted_its_cuda_context_is_replaced(live: Live) -> None:
    code = thing(
        """
def poison(self, message):
    import sys, types
    sys.modules.setdefault("torch", types.ModuleType("torch"))
    raise RuntimeError(message)
async def apoison(self, seconds):
    import asyncio
    await asyncio.sleep(seconds)
    self.poison("CUDA error: an illegal memory access was encountered")
"""
    )
    result(live, "a", "inc", code=code)
    run(live, "a", "poison", "CUDA out of memory. Tried to allocate 2 GiB", code=code)
    assert result(live, "a", "inc", code=code) == 2, "that one it survives"
    bad = run(live, "a", "poison", "CUDA error: device-side assert triggered", code=code)
    assert bad.error_type == "RuntimeError"
    assert result(live, "a", "inc", code=code) == 1
    sibling = begin(live, "a", "nap", 60, code=code)
    poison = begin(live, "a", "apoison", 0.1, code=code)
    behind = begin(live, "a", "inc", code=code)
    assert poison.wait().error_type == "RuntimeError"
    assert sibling.wait().error_type == "ResidentLost"
    assert value(behind.wait()) == 1


DEAF = thing(
    """
async def deaf(self):
    import asyncio
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            print("no")
"""
)


def test_each_of_two_late_calls_is_told_its_own_limit(make_live: Make) -> None:
    live = make_live(grace_s=2.0).ready()
    result(live, "a", "inc", code=DEAF)
    first = begin(live, "a", "deaf", code=DEAF, run_s=1.0)
    second = begin(live, "a", "deaf", code=DEAF, run_s=1.5)
    for late, limit in ((first, 1.0), (second, 1.5)):
        outcome = late.wait()
        assert outcome.error_type == "Timeout"
        assert outcome.details["limit_s"] == limit
        assert f"time limit of {limit:g} s" in (outcome.error or "")


def test_a_call_that_ignores_cancellation_ends_with_its_process(live: Live) -> None:
    code = DEAF
    result(live, "a", "inc", code=code)
    sibling = begin(live, "a", "nap", 60, code=code)
    late = begin(live, "a", "deaf", code=code, run_s=1.0)
    outcome = late.wait()
    assert outcome.error_type == "Timeout"
    assert sibling.wait().error_type == "ResidentLost"
    assert result(live, "a", "inc", code=code) == 1


def test_a_cancelled_late_call_reports_that_its_instance_still_exists(live: Live) -> None:
    result(live, "a", "inc")
    late = run(live, "a", "nap", 60, run_s=0.3)
    assert late.error_type == "Timeout"
    assert late.instance is not None
    assert (late.instance.instance, late.instance.ended_because) == ("a", None)
    assert result(live, "a", "inc") == 2


def test_an_idempotent_call_is_retried_in_a_new_instance(live: Live, tmp_path: Path) -> None:
    once = tmp_path / "once"
    code = thing(
        f"""
def die_once(self):
    import os
    if not os.path.exists({str(once)!r}):
        open({str(once)!r}, "w").close()
        os.kill(os.getpid(), 9)
    return self.inc()
"""
    )
    outcome = run(live, "a", "die_once", code=code, call={"idempotent": True})
    assert value(outcome) == 1
    assert outcome.receipt.attempts == 2
    assert outcome.instance is not None
    assert outcome.instance.generation == 2
    once.unlink()
    insists = {"must_exist": True}
    again = run(live, "a", "die_once", code=code, call={"idempotent": True}, want=insists)
    assert again.error_type == "WorkerCrashed", "its state is gone, and it insists on that"


def test_a_closed_instance_exits_as_a_program_does(make_live: Make, tmp_path: Path) -> None:
    live = make_live(instance_idle_s=0.1, grace_s=2.0).ready()
    code = closing(
        tmp_path / "notes",
        f"""
def begin(self):
    import atexit, threading, time
    self.file = self.__class__.file = open({str(tmp_path / "file")!r}, "w")
    self.file.write("written")
    atexit.register(self.__class__.hook)
    def late():
        time.sleep(0.3)
        self.note("thread")
    threading.Thread(target=late).start()
""",
        f"""
@staticmethod
def hook():
    open({str(tmp_path / "notes")!r}, "a").write("hook\\n")
""",
    )
    result(live, "a", "begin", code=code)
    live.until(lambda: not instances(live))
    assert (tmp_path / "file").read_text() == "written"
    assert [one for one in notes(tmp_path / "notes") if one != "del"] == ["thread", "hook"]
