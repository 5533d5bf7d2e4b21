"""Every way in which a call can finish has a clear outcome, and the next call works."""

from __future__ import annotations

import time

import pytest

from support.live import alive, value

NEXT = "def f(): return 'fine'"


def fine(live) -> None:
    """Check that the pool still works: a call succeeds, and no slot is lost."""
    assert live.value(NEXT) == "fine"
    live.until(lambda: live.stats().slots.busy == 0)


@pytest.mark.parametrize(
    ("dies", "details"),
    [
        ("os.kill(os.getpid(), 9)", {"signal": "SIGKILL"}),
        ("os.kill(os.getpid(), 15)", {"signal": "SIGTERM"}),
        ("os.kill(os.getpid(), 14)", {"signal": "SIGALRM"}),
        ("os.kill(os.getpid(), 7)", {"signal": "SIGBUS"}),
        ("os.abort()", {"signal": "SIGABRT"}),
        ("import ctypes; ctypes.string_at(0)", {"signal": "SIGSEGV"}),
        ("import faulthandler; faulthandler._stack_overflow()", {"signal": "SIGSEGV"}),
        ("os._exit(0)", {"exit_code": 0}),
        ("os._exit(7)", {"exit_code": 7}),
        ("import ctypes; ctypes.CDLL(None).exit(3)", {"exit_code": 3}),
    ],
)
def test_a_death_is_reported_with_its_cause(live, dies, details):
    outcome = live.call(f"import os\ndef f():\n    print('last words'); {dies}")
    assert outcome.error_type == "WorkerCrashed"
    assert not outcome.from_user
    assert details.items() <= dict(outcome.details).items()
    assert "last words" in outcome.error
    assert outcome.output.startswith(b"last words")
    assert outcome.receipt.exit.split()[-1] in {*map(str, details.values()), "clean"}
    fine(live)


def test_a_native_crash_shows_where_python_was(live):
    outcome = live.call("import ctypes\ndef f():\n    ctypes.string_at(0)")
    assert "Segmentation fault" in outcome.error
    assert 'File "flash:f", line 3 in f' in outcome.error
    assert "_child" not in outcome.error + outcome.output.decode()


@pytest.mark.parametrize(
    ("raises", "error_type"),
    [
        ("raise ValueError('no')", "ValueError"),
        ("import sys; sys.exit(3)", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import os; os.kill(os.getpid(), 2); import time; time.sleep(5)", "KeyboardInterrupt"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("raise type('Mine', (BaseException,), {})('odd')", "Mine"),
        ("return 1 +", "SyntaxError"),
        ("import no_such_module", "ModuleNotFoundError"),
    ],
)
def test_whatever_user_code_raises_is_reported(live, raises, error_type):
    outcome = live.call(f"def f():\n    {raises}")
    assert outcome.error_type == error_type
    assert outcome.from_user
    fine(live)


def test_an_unpicklable_result_is_an_error(live):
    outcome = live.call("def f():\n    import threading; return threading.Lock()")
    assert outcome.error_type == "ResultNotSerializable"
    assert "lock" in outcome.error
    fine(live)


def test_the_error_for_an_oversized_result_has_both_sizes(live):
    outcome = live.call("def f(): return b'x' * 3000", result_bytes=1000)
    assert outcome.error_type == "ResultTooLarge"
    assert outcome.details["limit"] == 1000
    assert 4000 < outcome.details["size"] < 5000, "of the 3000 bytes in base64"


def test_the_error_for_an_oversized_result_names_the_setting(live):
    code = "def f(): return b'x' * 3000"
    limits = {"result_bytes": 1000, "result_setting": "FLASHPOOL_X_MB"}
    assert live.call(code, **limits).error.endswith(" FLASHPOOL_X_MB sets the limit.")
    raised = "def f():\n    class ResultTooLarge(Exception): pass\n    raise ResultTooLarge('mine')"
    assert "FLASHPOOL_X_MB" not in live.call(raised, **limits).error


@pytest.mark.parametrize(
    "loops",
    [
        "while True: pass",
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)",
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n    while True: pass",
        "import re; re.match('(a+)+$', 'a' * 50 + 'b')",
        "import ctypes; ctypes.PyDLL(None).sleep(60)",
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    ],
    ids=["busy", "ignores-term", "blocks-all", "regex", "holds-the-gil", "stopped"],
)
def test_a_time_limit_ends_endless_calls(live, loops):
    began = time.monotonic()
    started = live.start(f"def f():\n    {loops}", run_s=0.2)
    outcome = started.wait()
    assert outcome.error_type == "Timeout"
    assert outcome.details["phase"] == "run"
    assert time.monotonic() - began >= 0.2
    fine(live)


def test_a_time_limit_shows_where_the_call_was(live):
    outcome = live.call("def f():\n    while True:\n        pass", run_s=1.0)
    assert 'File "flash:f", line 3 in f' in outcome.error or "line 2 in f" in outcome.error


def test_with_a_small_output_limit_the_users_stack_takes_precedence(make_live):
    live = make_live(slots=1, output_limit=1024).ready()
    outcome = live.call("def f():\n    print('x' * 1500)\n    while True:\n        pass", run_s=1.0)
    assert outcome.error.endswith("in f")
    assert b"_child" not in outcome.output
    assert b"in f\n" in outcome.output


def test_waiting_in_the_queue_has_a_limit_of_its_own(make_live):
    live = make_live(slots=1).ready()
    blocker = live.start("def f():\n    import time; time.sleep(60)")
    outcome = live.call(NEXT, queue_s=0.1)
    assert outcome.error_type == "Timeout"
    assert outcome.details["phase"] == "queue"
    assert outcome.receipt.attempts == 0
    live.supervisor.cancel(blocker.id)
    fine(live)


def test_a_call_may_change_default_limits(make_live):
    live = make_live(slots=1, call_timeout_s=0.2, queue_timeout_s=0.1, memory_mb=100).ready()
    sleeps = "def f():\n    import time; time.sleep(2)"
    assert live.call(sleeps, queue_s=30).details["limit_s"] == 0.2
    long = live.start(sleeps, run_s=30, queue_s=30)
    assert long.pid
    assert live.call(NEXT).details == {"phase": "queue", "limit_s": 0.1}
    assert long.wait().ok
    grows = "def f():\n    block = bytearray(200 << 20); import time; time.sleep(0.15)"
    assert live.call(grows, run_s=30, queue_s=30, memory_mb=400).ok
    stays = grows + "; time.sleep(20)"
    assert live.call(stays, run_s=30, queue_s=30).details["limit_mb"] == 100


def test_exceeding_the_memory_limit_is_reported_with_evidence(live):
    outcome = live.call(
        "def f():\n    import time; block = bytearray(400 << 20); time.sleep(30)", memory_mb=100
    )
    assert outcome.error_type == "OutOfMemory"
    assert outcome.details["limit_mb"] == 100
    assert outcome.details["measured_mb"] > 100
    assert outcome.details["confidence"] == "certain"
    fine(live)


def test_memory_of_children_counts(live):
    code = """
def f():
    import subprocess, sys
    subprocess.run([sys.executable, "-c", "b = bytearray(400 << 20); import time; time.sleep(30)"])
"""
    outcome = live.call(code, memory_mb=100)
    assert outcome.error_type == "OutOfMemory"
    fine(live)


@pytest.mark.parametrize(
    "takes",
    [
        "import mmap; block = mmap.mmap(-1, 300 << 20); block.write(bytes(300 << 20))",
        "import mmap, os; fd = os.memfd_create('x'); os.truncate(fd, 3 << 27); block = mmap.mmap(fd, 3 << 27); block.write(bytes(3 << 27))",
    ],
    ids=["anonymous", "memfd"],
)
def test_shared_memory_counts(live, takes):
    outcome = live.call(f"def f():\n    {takes}; import time; time.sleep(30)", memory_mb=100)
    assert outcome.error_type == "OutOfMemory"


def test_a_flood_on_the_channel_is_refused_before_it_is_kept(live):
    code = """
def f():
    import os, struct
    fd = max(map(int, os.listdir("/proc/self/fd")))
    os.write(fd, struct.pack("<2sBBIQ", b"fp", 19, 0, 0, 3 << 30) + bytes(1000))
    import time; time.sleep(30)
"""
    outcome = live.call(code, result_bytes=1000)
    assert outcome.error_type == "WorkerCrashed"
    assert "channel" in outcome.error


def test_a_result_that_arrived_counts_although_the_loop_was_blocked(live):
    started = live.start("def f():\n    import time; time.sleep(0.1); return 1", run_s=0.3)
    worker, began = started.pid, time.monotonic()
    # The worker sends its result at its exit while the loop is blocked, as in a paused container.
    while alive(worker) or time.monotonic() < began + 0.5:
        assert time.monotonic() < began + 20, "it does not leave by itself"
        time.sleep(0.01)
    assert started.wait().ok


def test_cancelling_answers_at_once_and_ends_the_process_tree(live):
    code = """
def f():
    import subprocess, time
    child = subprocess.Popen(["sleep", "60"])
    print(child.pid, flush=True)
    time.sleep(60)
"""
    started = live.start(code)
    child = int(started.wait_for_output(b"\n"))
    worker = started.pid
    assert alive(child)
    live.supervisor.cancel(started.id, "no longer wanted")
    assert started.sink.future.done(), "its tree may take as long as it likes"
    outcome = started.wait()
    assert outcome.error_type == "Cancelled"
    assert "no longer wanted" in outcome.error
    live.until(lambda: not alive(child) and not alive(worker))
    fine(live)


def test_processes_left_by_a_call_may_print_a_lot_while_they_end(make_live, tmp_path):
    live = make_live(grace_s=20.0)
    leaves = f"""
import os, signal, sys, time
def f():
    up, told = os.pipe()
    if os.fork() == 0:
        def leave(*_):
            for _ in range(100):
                os.write(1, b"x" * 10_000)
            open({str(tmp_path / "done")!r}, "w").close()
            os._exit(0)
        signal.signal(signal.SIGTERM, leave)
        os.write(told, b".")
        time.sleep(60)
    os.read(up, 1)
    return "left it"
"""
    assert live.value(leaves) == "left it"
    # The output exceeds a pipe's capacity within the grace, so it must be read.
    live.until(lambda: live.stats().slots.busy == 0, 10)
    live.until(lambda: live.zygote().workers == live.zygote().spares, 10)
    assert (tmp_path / "done").exists()


def test_a_call_cancelled_in_the_queue_never_starts(make_live):
    live = make_live(slots=1).ready()
    blocker = live.start("def f():\n    import time; time.sleep(60)")
    assert blocker.pid
    waiting = live.start(NEXT)
    live.supervisor.cancel(waiting.id)
    assert waiting.wait().error_type == "Cancelled"
    assert live.stats().queue.depth == 0
    live.supervisor.cancel(blocker.id)
    fine(live)


def test_a_user_fork_that_returns_answers_once(live):
    assert live.value("import os\ndef f():\n    os.fork()\n    return 'once'") == "once"
    fine(live)
    assert live.stats().outcomes == {"ok": 2}


def test_a_malformed_request_is_an_invalid_request(live):
    outcome = live.call(NEXT, name="g")
    assert outcome.error_type == "InvalidRequest"
    assert "g" in outcome.error
    assert "f" in outcome.error


def test_streamed_items_arrive_one_by_one_within_the_window(live):
    code = "def f():\n    for i in range(100):\n        print(i, flush=True)\n        yield i"
    started = live.start(code, call={"stream": True})
    live.until(lambda: len(started.sink.items) == 16)
    live.until(lambda: started.sink.chunks and b"16\n" in b"".join(started.sink.chunks))
    assert b"17\n" not in b"".join(started.sink.chunks), "it waits for credit"
    started.sink.on_item = lambda: live.supervisor.credit(started.id, 1)
    live.supervisor.credit(started.id, 16)
    assert value(started.wait()) == list(range(100)), "a request's answer holds them too"
    assert len(started.sink.items) == 100


def test_without_a_stream_a_generator_becomes_a_list(live):
    assert live.value("def f():\n    yield from range(3)") == [0, 1, 2]
    assert live.value("async def f():\n    for i in range(3):\n        yield i") == [0, 1, 2]


def test_a_receipt_has_the_times_and_memory_of_a_call(live):
    outcome = live.call("def f():\n    import time; time.sleep(0.05)")
    receipt = outcome.receipt
    assert 0.05 <= receipt.run_s <= receipt.total_s
    assert receipt.peak_rss_mb > 1
    assert receipt.start_method == "fork"
    assert receipt.attempts == 1
    assert value(outcome) is None


DAMAGES = {
    "no-builtins": "import builtins; builtins.__dict__.clear()",
    "no-len": "import builtins; builtins.len = None",
    "no-type": "import builtins; builtins.type = builtins.hasattr = builtins.BaseException = None",
    "no-getpid": "import os; del os.getpid; del os._exit",
    "no-streams": "import sys; del sys.stdout; sys.excepthook = None",
    "audit": "import sys; sys.addaudithook(REFUSE)",
}
REFUSES = """
def REFUSE(event, args):
    raise RuntimeError("refused: " + event)
"""


@pytest.mark.parametrize("damage", DAMAGES, ids=list(DAMAGES))
def test_a_result_is_reported_from_a_damaged_interpreter(live, damage):
    code = f"{REFUSES}\ndef f():\n    {DAMAGES[damage]}\n    return [7]"
    assert live.value(code) == [7]
    fine(live)


@pytest.mark.parametrize("damage", DAMAGES, ids=list(DAMAGES))
def test_an_exception_is_reported_from_a_damaged_interpreter(live, damage):
    error = "error = ValueError('mine')"
    code = f"{REFUSES}\ndef f():\n    {error}\n    {DAMAGES[damage]}\n    raise error"
    outcome = live.call(code)
    assert outcome.error_type == "ValueError", outcome
    assert outcome.error.startswith("ValueError: mine")
    assert "_child" not in outcome.error
    fine(live)


def test_exceptions_caused_by_broken_builtins_are_described(live):
    code = "import builtins\ndef f():\n    builtins.len = None\n    return len([])"
    outcome = live.call(code)
    assert outcome.error_type == "TypeError"
    assert "'NoneType' object is not callable" in outcome.error
    assert "line 4, in f" in outcome.error
    assert "_child" not in outcome.error


def test_a_worker_that_cannot_send_its_result_says_why(live):
    code = """
import sys
def f():
    wire = sys.modules["_flashpool.wire"]
    def broken(**_): raise LookupError("gone")
    wire.ResultMeta = broken
    return 1
"""
    outcome = live.call(code)
    assert outcome.error_type == "WorkerCrashed"
    assert "damaged its interpreter" in outcome.error
    assert "LookupError" in outcome.error
    assert "closed" not in outcome.error
    fine(live)


@pytest.mark.parametrize("env", [{"A": "\ud800"}, {"A=B": "1"}, {"A": "x\0y"}])
def test_invalid_environment_variables_are_an_invalid_request(live, env):
    outcome = live.call(NEXT, call={"env": env})
    assert outcome.error_type == "InvalidRequest", outcome
    assert "env" in outcome.error
    fine(live)
