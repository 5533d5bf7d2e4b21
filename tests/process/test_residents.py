"""Class instances in real workers: what user code does to them."""

from collections.abc import Callable

import pytest
from process.resident_calls import THING, begin, instances, result, run, thing, value

from support.live import Live

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
def test_items_arrive_one_by_one_from_every_kind_of_generator(
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
    assert stream.wait().format == "stream"
    assert stream.sink.items == [b"%d" % i for i in range(100)]
    assert value(nap.wait()) == 1


def test_an_unread_stream_does_not_block_another(live: Live) -> None:
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


def test_after_a_fork_in_a_call_the_original_process_answers(live: Live) -> None:
    for method, args in (("fork", ()), ("afork", (0.2,))):
        assert result(live, method, method, *args, code=FORKS) == "first"
        assert result(live, method, "reap", code=FORKS) == 0
        assert result(live, method, "inc", code=FORKS) == 1, "one process is left, and it works"


def test_a_fork_during_other_calls_reads_none_of_their_frames(live: Live) -> None:
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
def test_a_task_left_behind_cannot_end_the_process(live: Live, how: str) -> None:
    pid = result(live, "a", "pid", code=LEAVES)
    assert result(live, "a", "leave_later", how, "not now", code=LEAVES) == "left"
    assert result(live, "a", "nap", 0.1, code=LEAVES) == 0
    assert run(live, "a", "leave", code=LEAVES).error_type == "SystemExit"
    want = {"concurrency": 1}
    assert result(live, "b", "leave_later", how, "not now", code=LEAVES, want=want) == "left"
    assert result(live, "b", "nap", 0.1, code=LEAVES, want=want) == 0
    assert result(live, "a", "pid", code=LEAVES) == pid


def test_tasks_left_behind_continue_and_asyncio_run_still_works(live: Live) -> None:
    result(live, "a", "background", code=LEAVES)
    assert result(live, "a", "run", code=LEAVES) == "ran"
    assert any(result(live, "a", "nap", 0.05, code=LEAVES) > 2 for _ in range(200))
    assert set(run(live, "a", "inc", code=LEAVES).output.split()) <= {b"tick"}


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
    self.go = asyncio.Event()
    async def later():
        await self.go.wait()
        print("too late")
    self.task = asyncio.create_task(later())
async def hear(self):
    self.go.set()
    await self.task
"""
)


def test_a_hundred_overlapping_calls_each_have_their_own_output(live: Live) -> None:
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


def test_an_overlapping_call_may_write_much_at_once(live: Live) -> None:
    assert result(live, "a", "shout", 100 << 20, code=WRITES, result_bytes=1 << 20) == 100 << 20
    result(live, "a", "whisper_later", code=WRITES)
    assert run(live, "a", "hear", code=WRITES).output == b"too late\n"


def test_output_of_the_constructor_belongs_to_the_first_call(live: Live) -> None:
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


def test_damage_to_the_process_fails_the_call_and_the_next_gets_a_new_instance(live: Live) -> None:
    for method, words in (
        ("exits", "exit code 7"),
        ("close_all", "descriptor that carries its result"),
        ("garbage", "something other than flashpool's runtime"),
    ):
        assert result(live, "a", "inc", code=HARMS) == 1
        outcome = run(live, "a", method, code=HARMS)
        assert outcome.error_type == "WorkerCrashed", (method, outcome)
        assert words in (outcome.error or ""), method
    assert result(live, "a", "inc", code=HARMS) == 1


def test_some_damage_does_not_end_the_instance(live: Live) -> None:
    # Without the async method there is no loop, whose descriptors would be among the low ones.
    plain = HARMS.replace("async def nap", "def nap").replace("await ", "")
    for method in ("close_low", "threads"):
        assert result(live, "a", method, code=plain) == 1
    assert result(live, "a", "inc", code=plain) == 1
    broken = run(live, "b", "break_builtins", code=HARMS)
    assert broken.ok or broken.error_type == "WorkerCrashed", broken
    assert result(live, "c", "inc", code=HARMS) == 1


def test_large_arguments_results_and_errors_are_transferred(live: Live) -> None:
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
                data = bytes.fromhex(meta)
                os.write(fd, struct.pack("<2sBBIQ", b"fp", kind, 0, len(data), 0) + data)
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
        # a number, then: not ok, without a message; ok, with a list in place of an object
        "0100000000000000" + "0000" + "00" * 16 + b"{}".hex(),
        "0100000000000000" + "0100" + "00" * 16 + b"[]".hex(),
        "0100" + "00" * 16 + b'{"overlapping": [[]], "modules": 3}'.hex(),
    ],
)
def test_a_forged_frame_does_not_affect_other_instances(live: Live, kind: int, meta: str) -> None:
    outcome = run(live, "a", "forge", kind, meta, code=FORGED)
    assert outcome.ok or outcome.error_type == "WorkerCrashed", outcome
    assert result(live, "b", "inc") == 1
    assert result(live, "a", "inc", code=FORGED) == 1
