"""Class instances in real workers: what user code does to them, and what dies around them."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from process.resident_calls import THING, begin, instances, result, run, thing, value

from support.live import Live, alive

Make = Callable[..., Live]


def test_a_call_cancelled_before_it_began_leaves_the_others_alone(live: Live) -> None:
    result(live, "a", "inc")
    nap = begin(live, "a", "nap", 1.0)
    live.until(lambda: instances(live)["a"].running == 1)
    # Both frames are sent before the worker reads one of them.
    other = begin(live, "a", "nap", 60)
    live.supervisor.cancel(other.id, "nobody wants it")
    assert other.wait().error_type == "Cancelled"
    assert value(nap.wait()) == 1
    assert result(live, "a", "inc") == 2


def test_cancelling_a_call_that_waits_and_one_that_runs(live: Live) -> None:
    result(live, "a", "inc")
    running = begin(live, "a", "sleep", 60)
    waiting = begin(live, "a", "inc")
    behind = begin(live, "a", "inc")
    live.until(lambda: instances(live)["a"].running == 1)
    live.supervisor.cancel(waiting.id, "nobody wants it")
    assert waiting.wait().error_type == "Cancelled"
    live.supervisor.cancel(running.id, "nobody wants it")
    assert running.wait().error_type == "Cancelled"
    assert value(behind.wait()) == 1, "it was made anew for who waited"


@pytest.mark.parametrize("concurrency", [1, 32])
@pytest.mark.parametrize("kind", ["async def", "def", "async def of"])
def test_items_come_one_by_one_however_they_are_made(
    live: Live, concurrency: int, kind: str
) -> None:
    """More items than the window holds, alone and beside another call."""
    code = thing(
        "async def many(self, n):\n    for i in range(n):\n        yield i\n"
        if kind == "async def"
        else "def many(self, n):\n    yield from range(n)\n"
        if kind == "def"
        else "async def many(self, n):\n    return (i for i in range(n))\n"
    )
    want = {"concurrency": concurrency}
    result(live, "a", "inc", code=code, want=want)
    nap = begin(live, "a", "nap", 0.3, code=code, want=want)
    stream = begin(live, "a", "many", 100, code=code, stream=True, want=want)
    stream.sink.on_item = lambda: live.supervisor.credit(stream.id, 1)
    assert stream.wait(20).format == "stream"
    assert stream.sink.items == [b"%d" % i for i in range(100)]
    assert value(nap.wait()) == 1


def test_two_streams_at_once_of_whom_one_is_not_read(live: Live) -> None:
    code = thing("async def many(self, n):\n    for i in range(n):\n        yield i\n")
    stuck = begin(live, "a", "many", 100, code=code, stream=True)
    live.until(lambda: len(stuck.sink.items) == 16)
    read = begin(live, "a", "many", 100, code=code, stream=True)
    read.sink.on_item = lambda: live.supervisor.credit(read.id, 1)
    assert read.wait().ok
    assert len(read.sink.items) == 100
    live.supervisor.cancel(stuck.id, "nobody reads it")
    assert result(live, "a", "inc", code=code) == 1


FORKS = thing(
    """
def fork(self):
    import os
    self.child = os.fork()
    print("first" if self.child else "second")
    return "first" if self.child else "second"
async def afork(self, seconds):
    import os, asyncio
    self.child = os.fork()
    print("first" if self.child else "second")
    await asyncio.sleep(seconds)
    return "first" if self.child else "second"
async def children(self):
    import multiprocessing, asyncio
    context = multiprocessing.get_context("fork")
    child = context.Process(target=print, args=("from a child",))
    child.start()
    await asyncio.to_thread(child.join)
    return child.exitcode
def reap(self):
    import os
    return os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])
"""
)


def test_of_a_call_that_forks_the_first_process_answers(live: Live) -> None:
    for method, args in (("fork", ()), ("afork", (0.2,))):
        assert result(live, method, method, *args, code=FORKS) == "first"
        assert result(live, method, "reap", code=FORKS) == 0
        assert result(live, method, "inc", code=FORKS) == 1, "one process is left, and it works"


def test_a_fork_beside_other_calls_takes_none_of_their_frames(live: Live) -> None:
    result(live, "a", "nap", 0, code=FORKS)
    fork = begin(live, "a", "afork", 0.5, code=FORKS)
    live.until(lambda: instances(live)["a"].running == 1)
    naps = [begin(live, "a", "nap", 0.01, code=FORKS) for _ in range(50)]
    assert [value(nap.wait()) for nap in naps] == [0] * 50
    assert value(fork.wait()) == "first"
    assert result(live, "a", "children", code=FORKS) == 0
    assert result(live, "a", "inc", code=FORKS) == 1


LEAVES = thing(
    """
async def leave_later(self, how, text):
    import asyncio
    async def leave():
        await asyncio.sleep(0)
        raise {"exit": SystemExit, "interrupt": KeyboardInterrupt, "error": ValueError}[how](text)
    self.task = asyncio.create_task(leave())
    return "left"
async def leave(self):
    raise SystemExit(3)
async def background(self):
    import asyncio
    async def tick():
        while True:
            await asyncio.sleep(0.01)
            self.n += 1
            print("tick")
    self.ticking = asyncio.create_task(tick())
def run(self):
    import asyncio
    async def f():
        await asyncio.sleep(0.01)
        return "ran"
    return asyncio.run(f())
"""
)


@pytest.mark.parametrize("how", ["exit", "interrupt", "error"])
def test_a_task_left_behind_that_wants_to_end_the_process_does_not(live: Live, how: str) -> None:
    pid = result(live, "a", "pid", code=LEAVES)
    assert result(live, "a", "leave_later", how, "not now", code=LEAVES) == "left"
    assert result(live, "a", "nap", 0.1, code=LEAVES) == 0
    assert run(live, "a", "leave", code=LEAVES).error_type == "SystemExit"
    want = {"concurrency": 1}
    assert result(live, "b", "leave_later", how, "not now", code=LEAVES, want=want) == "left"
    assert result(live, "b", "nap", 0.1, code=LEAVES, want=want) == 0
    assert result(live, "a", "pid", code=LEAVES) == pid


def test_tasks_left_behind_go_on_and_asyncio_run_works_beside_them(live: Live) -> None:
    result(live, "a", "background", code=LEAVES)
    assert result(live, "a", "run", code=LEAVES) == "ran"
    assert result(live, "a", "nap", 0.2, code=LEAVES) > 2
    assert run(live, "a", "inc", code=LEAVES).output in (b"", b"tick\n" * 2, b"tick\n")


WRITES = thing(
    """
async def talk(self, who, lines):
    import asyncio, logging, sys
    log = logging.getLogger("talk")
    for i in range(lines):
        print(who, "print", i)
        log.warning("%s log %d", who, i)
        await asyncio.to_thread(print, who, "thread", i)
        sys.stdout.buffer.write(f"{who} bytes {i}\\n".encode())
        await asyncio.sleep(0)
    await asyncio.gather(*(asyncio.to_thread(self.say, who) for _ in range(4)))
    print(who, "unfinished", end="")
def say(self, who):
    for i in range(20):
        print(who, end=" ")
        print("together", i)
async def shout(self, size):
    print("x" * size)
    return size
async def whisper_later(self):
    import asyncio
    async def later():
        await asyncio.sleep(0.05)
        print("too late")
    self.task = asyncio.create_task(later())
"""
)


def test_a_hundred_calls_that_overlap_have_each_their_own_output(live: Live) -> None:
    want = {"concurrency": 100}
    result(live, "a", "inc", code=WRITES, want=want)
    calls = [begin(live, "a", "talk", f"<{i}>", 5, code=WRITES, want=want) for i in range(100)]
    for i, call in enumerate(calls):
        outcome = call.wait()
        assert outcome.ok, outcome.error
        written = outcome.output.decode()
        assert written.count(f"<{i}>") == written.count("<"), written
        for kind in ("print", "log", "thread", "bytes"):
            assert written.count(f"<{i}> {kind}") == 5, written
        assert written.count(f"<{i}>") == 5 * 4 + 4 * 20 + 1
        assert written.endswith("unfinished")


def test_a_call_that_overlaps_may_write_much_at_once(live: Live) -> None:
    assert result(live, "a", "shout", 100 << 20, code=WRITES, result_bytes=1 << 20) == 100 << 20
    result(live, "a", "whisper_later", code=WRITES)
    assert run(live, "a", "nap", 0.2, code=WRITES).output == b"too late\n"


def test_what_the_constructor_writes_is_the_first_calls(live: Live) -> None:
    code = THING.replace("self.n = start", "self.n = start; print('made')")
    first, second = begin(live, "a", "inc", code=code), begin(live, "a", "inc", code=code)
    assert first.wait().output == b"made\n"
    assert first.sink.chunks == [b"made\n"]
    assert second.wait().output == b""


HARMS = thing(
    """
def break_builtins(self):
    import builtins, os, json
    builtins.len = builtins.isinstance = builtins.dict = None
    os.getpid = None
    return 1
def exits(self):
    import os
    os._exit(7)
def close_all(self):
    import os
    os.closerange(3, 4096)
    return 1
def close_low(self):
    import os
    os.closerange(0, 1024)
    return 1
def garbage(self):
    import os, stat
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                os.write(fd, b"garbage, not a frame" * 10)
        except OSError:
            pass
    return 1
def threads(self):
    import threading, time
    threading.Thread(target=time.sleep, args=(600,)).start()
    return 1
def huge(self, size):
    return "x" * size
def huge_error(self, size):
    raise ValueError("x" * size)
def size(self, text):
    return len(text)
"""
)


def test_harm_done_to_the_process_is_told_and_the_next_call_has_a_new_one(live: Live) -> None:
    for method, words in (
        ("exits", "exit code 7"),
        ("close_all", "descriptor that carries its result"),
        ("garbage", "something else than its runtime"),
    ):
        assert result(live, "a", "inc", code=HARMS) == 1
        outcome = run(live, "a", method, code=HARMS)
        assert outcome.error_type == "WorkerCrashed", (method, outcome)
        assert words in (outcome.error or ""), method
    assert result(live, "a", "inc", code=HARMS) == 1


def test_harm_that_a_call_survives(live: Live) -> None:
    for method in ("close_low", "threads"):
        assert result(live, "a", method, code=HARMS) == 1
    assert result(live, "a", "inc", code=HARMS) == 1
    broken = run(live, "b", "break_builtins", code=HARMS)
    assert broken.ok or broken.error_type == "WorkerCrashed", broken
    assert result(live, "c", "inc", code=HARMS) == 1


def test_large_arguments_results_and_errors(live: Live) -> None:
    size = 50 << 20
    assert result(live, "a", "size", "x" * size, code=HARMS) == size
    assert len(result(live, "a", "huge", size, code=HARMS)) == size
    limited = run(live, "a", "huge", size, code=HARMS, result_bytes=1 << 20)
    assert limited.error_type == "ResultTooLarge"
    failed = run(live, "a", "huge_error", 2 * size, code=HARMS)
    assert failed.error_type == "ValueError"
    assert len(failed.error or "") < 1 << 20
    assert result(live, "a", "inc", code=HARMS) == 1


FORGED = thing(
    """
def forge(self, kind, meta):
    import os, socket, stat, struct
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                meta = bytes.fromhex(meta)
                os.write(fd, struct.pack("<2sBBIQ", b"fp", kind, 0, len(meta), 0) + meta)
        except OSError:
            pass
    return 1
"""
)


@pytest.mark.parametrize("kind", [16, 18, 19, 20, 21, 99])
@pytest.mark.parametrize(
    "meta",
    [
        "",
        "00",
        "ff" * 40,
        # a number, then: not ok, without words; ok, with a list in place of an object
        "0100000000000000" + "0000" + "00" * 16 + b"{}".hex(),
        "0100000000000000" + "0100" + "00" * 16 + b"[]".hex(),
        "0100" + "00" * 16 + b'{"overlapping": [[]], "modules": 3}'.hex(),
    ],
)
def test_a_forged_frame_does_no_harm_to_others(live: Live, kind: int, meta: str) -> None:
    outcome = run(live, "a", "forge", kind, meta, code=FORGED)
    assert outcome.ok or outcome.error_type == "WorkerCrashed", outcome
    assert result(live, "b", "inc") == 1
    assert result(live, "a", "inc", code=FORGED) == 1


# -- Ends ---------------------------------------------------------------------------------


def closing(path: Path, *methods: str) -> str:
    return thing(
        f"def note(self, text):\n    open({str(path)!r}, 'a').write(text + '\\n')",
        "def __del__(self):\n    self.note('del')",
        *methods,
    )


def notes(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


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
def test_what_is_called_when_it_closes(
    make_live: Make, tmp_path: Path, methods: list[str], expected: list[str] | None
) -> None:
    live = make_live(instance_idle_s=0.1).ready()
    code = closing(tmp_path / "notes", *methods)
    pid = result(live, "a", "pid", code=code)
    live.until(lambda: not instances(live), 5)
    assert not alive(pid)
    assert notes(tmp_path / "notes") == (expected or ["exit (None, None, None)", "del"])


def test_tasks_are_cancelled_before_the_instance_goes(make_live: Make, tmp_path: Path) -> None:
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
    live.until(lambda: not instances(live), 5)
    assert notes(tmp_path / "notes") == ["close", "cancelled", "del"]


def test_a_close_that_hangs_has_the_grace_and_is_killed(make_live: Make, tmp_path: Path) -> None:
    code = closing(
        tmp_path / "notes",
        "def close(self):\n    self.note('close')\n    import time\n    time.sleep(600)",
    )
    live = make_live(instance_idle_s=0.1, grace_s=0.3).ready()
    pid = result(live, "a", "pid", code=code)
    live.until(lambda: notes(tmp_path / "notes"), 5)
    begun = time.monotonic()
    # A call that comes meanwhile has the next one.
    assert result(live, "a", "pid", code=code) != pid
    assert 0.1 < time.monotonic() - begun < 3
    assert not alive(pid)


def test_killed_while_it_closes(make_live: Make, tmp_path: Path) -> None:
    code = closing(
        tmp_path / "notes",
        "def close(self):\n    self.note('close')\n    import time\n    time.sleep(600)",
    )
    live = make_live(instance_idle_s=0.1, grace_s=30).ready()
    pid = result(live, "a", "pid", code=code)
    live.until(lambda: notes(tmp_path / "notes"), 5)
    waits = begin(live, "a", "inc", code=code)
    os.kill(pid, signal.SIGKILL)
    assert value(waits.wait(5)) == 1


@pytest.mark.parametrize("who", ["worker", "zygote"])
@pytest.mark.parametrize("when", ["idle", "running", "overlapping", "loading"])
def test_killed(live: Live, tmp_path: Path, who: str, when: str) -> None:
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
        outcome = call.wait(10)
        assert outcome.error_type == "WorkerCrashed", outcome
        assert ("SIGKILL" if who == "worker" else "zygote") in (outcome.error or "")
    if behind is not None:
        assert value(behind.wait(10)) == 1
    else:
        live.until(lambda: not instances(live), 5)
        assert result(live, "a", "inc", code=code) == 1
    assert instances(live)["a"].generation == 2


def test_a_constructor_that_never_ends_is_stopped_when_nobody_waits(live: Live) -> None:
    code = THING.replace("self.n = start", "print('begins', flush=True)\n        while True: pass")
    calls = [begin(live, "a", "inc", code=code) for _ in range(3)]
    pid = live.until(lambda: instances(live)["a"].pid)
    for call in calls:
        live.supervisor.cancel(call.id, "the client went away")
        assert call.wait().error_type == "Cancelled"
    live.until(lambda: not alive(pid), 5)
    live.until(lambda: not instances(live))
    assert live.stats().slots.busy == 0


def test_one_that_poisoned_its_process_is_replaced(live: Live) -> None:
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


def test_who_swallows_its_cancellation_ends_with_its_process(live: Live) -> None:
    code = thing(
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
    result(live, "a", "inc", code=code)
    sibling = begin(live, "a", "nap", 60, code=code)
    late = begin(live, "a", "deaf", code=code, run_s=0.2)
    outcome = late.wait(5)
    assert outcome.error_type == "Timeout"
    assert sibling.wait(5).error_type == "ResidentLost"
    assert result(live, "a", "inc", code=code) == 1


def test_an_idempotent_call_is_run_again_in_a_new_one(live: Live, tmp_path: Path) -> None:
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


# -- Room ---------------------------------------------------------------------------------


def test_a_storm_of_calls_that_want_it_anew(live: Live) -> None:
    calls = [
        begin(live, "a", "inc", made_with=(i,), want={"anew": True, "arguments": i})
        for i in range(10)
    ]
    assert [value(call.wait()) for call in calls] == list(range(1, 11))
    outcome = run(live, "a", "inc", want={"arguments": 9})
    assert value(outcome) == 11
    assert outcome.instance is not None
    assert (outcome.instance.generation, outcome.instance.same_arguments) == (10, True)


def test_a_thousand_calls_over_eight_with_room_for_four(make_live: Make) -> None:
    """State is lost only with its generation, and who goes is who was called longest ago."""
    live = make_live(instances=4, slots=4).ready()
    totals: dict[str, tuple[int, int]] = {}
    recent: list[str] = []
    # Neighbours of a few at a time, so that some calls find theirs and some do not.
    order = [f"i{(i // 7 + i % 5) % 8}" for i in range(1000)]
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
    assert 300 < hits < 990


def test_a_thousand_calls_at_once(make_live: Make) -> None:
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
    assert live.stats().queue.depth == 2
    assert [value(call.wait()) for call in (busy, *waiting)] == [0, 1, 1]


def test_calls_that_insist_are_told_when_it_dies_while_they_wait(live: Live) -> None:
    pid = result(live, "a", "pid")
    busy = begin(live, "a", "sleep", 60)
    live.until(lambda: instances(live)["a"].running == 1)
    insists = begin(live, "a", "inc", want={"must_exist": True})
    os.kill(pid, signal.SIGKILL)
    assert busy.wait().error_type == "WorkerCrashed"
    lost = insists.wait(5)
    assert lost.error_type == "InstanceLost"
    assert "SIGKILL" in (lost.error or "")


HOG = THING.replace("self.n = start", "self.n = start; self.held = b'x' * (start << 20)")


def test_memory_is_limited_while_it_is_made_and_while_it_is_called(live: Live) -> None:
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


def test_what_all_use_is_bounded(make_live: Make) -> None:
    live = make_live(instances=8, instances_mb=500).ready()
    for name in "abc":
        result(live, name, "inc", code=HOG, made_with=(200,))
    live.until(lambda: set(instances(live)) == {"b", "c"}, 10)
    time.sleep(1.5)
    live.until(lambda: all(one.memory_mb > 190 for one in instances(live).values()), 5)
    assert set(instances(live)) == {"b", "c"}, "the two fit"


def test_a_spare_that_is_stopped_does_not_keep_an_instance_from_being_made(
    make_live: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flashpool.pool.crew.BEGIN_S", 0.5)
    live = make_live().ready()
    live.value("def f(): return 1")
    spares = live.until(lambda: [w.pid for w in live.supervisor._parts.crew if w.running is None])
    for pid in spares:
        os.kill(pid, signal.SIGSTOP)
    assert value(begin(live, "a", "inc").wait(20)) == 1
    assert instances(live)["a"].generation == 1


def test_idle_ones_make_way_when_there_is_no_room_for_a_process(
    make_live: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = make_live(max_spares=1).ready()
    for name in "abc":
        result(live, name, "inc")
    fleet, reports = live.supervisor._parts.fleet, live.supervisor._reports
    fork = fleet.fork

    def refuse(key: Any, number: int, *others: Any) -> None:
        if len(instances(live)) > 1:
            live.loop.call_soon(reports.not_forked, fleet[key], number)
        else:
            fork(key, number, *others)

    monkeypatch.setattr(fleet, "fork", refuse)
    calls = [live.start("def f(): return 7") for _ in range(6)]
    assert all(call.wait(20).ok for call in calls)
    assert set(instances(live)) == {"c"}


def test_a_drain_closes_what_is_idle_and_waits_for_what_is_not(
    make_live: Make, tmp_path: Path
) -> None:
    live = make_live(grace_s=2).ready()
    code = closing(tmp_path / "notes", "def close(self):\n    self.note(f'close {self.n}')")
    result(live, "idle", "inc", 5, code=code)
    busy = begin(live, "busy", "sleep", 1, code=code)
    stuck = begin(live, "stuck", "sleep", 60, code=code)
    live.until(lambda: sum(one.running for one in instances(live).values()) == 2)
    begun = time.monotonic()
    assert live.run(live.supervisor.drain(2.5)) is False
    assert value(busy.wait()) == 0
    live.run(live.supervisor.stop("it stops"))
    assert time.monotonic() - begun < 6
    assert stuck.wait().error_type == "Cancelled"
    assert {"close 5", "close 0"} <= set(notes(tmp_path / "notes"))
