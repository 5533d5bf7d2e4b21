"""A call's changes to its surroundings stay in the call, and nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flashpool.pool._child import processes
from flashpool.pool.config import PoolConfig
from support.live import WORKER_ENV, alive, value

LEAVES = {
    "popen": "subprocess.Popen(['sleep', '61'])",
    "setsid": "subprocess.Popen(['sleep', '61'], start_new_session=True)",
    "ignores-term": "subprocess.Popen(['sh', '-c', 'trap \"\" TERM; sleep 61 & wait'], start_new_session=True)",
    "double-fork": """
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            import time
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(61)
        os._exit(0)
    os.wait()""",
    "many": "[subprocess.Popen(['sleep', '61'], start_new_session=i % 2 == 0) for i in range(50)]",
}


def below(pid: int) -> list[int]:
    return processes.descendants(pid)


def workers_of(live) -> list[int]:
    return below(live.zygote().pid)


@pytest.mark.parametrize("ending", ["returns", "exits", "times-out"])
@pytest.mark.parametrize("leaves", LEAVES, ids=list(LEAVES))
def test_everything_that_a_call_leaves_behind_is_removed(live, leaves, ending):
    last = {
        "returns": "return 1",
        "exits": "os._exit(5)",
        "times-out": "import time; time.sleep(60)",
    }
    code = f"import os, signal, subprocess\ndef f():\n    {LEAVES[leaves]}\n    {last[ending]}"
    outcome = live.call(code, run_s=0.6 if ending == "times-out" else None)
    expected = {"returns": None, "exits": "WorkerCrashed", "times-out": "Timeout"}
    assert outcome.error_type == expected[ending]
    live.until(lambda: live.stats().slots.busy == 0)
    live.until(lambda: len(workers_of(live)) == live.zygote().spares)


def test_a_running_call_keeps_its_daemons(live, tmp_path):
    """Double-forked helpers count as orphans only after their call has finished."""
    code = """
import os, subprocess, time
def f():
    subprocess.run("sleep 60 & echo $! > " + os.environ["NOTE"], shell=True, start_new_session=True)
    print(open(os.environ["NOTE"]).read(), flush=True)
    time.sleep(60)
"""
    note = tmp_path / "pid"
    first = live.start(code, call={"env": {"NOTE": str(note)}})
    daemon = int(first.wait_for_output(b"\n"))
    assert live.value("def f(): return 1") == 1
    live.until(lambda: live.stats().slots.busy == 1)
    assert alive(daemon), "another call's end is not its end"
    live.supervisor.cancel(first.id)
    live.until(lambda: not alive(daemon))


SPOILS = {
    "environment": "import os; os.environ['SPOILT'] = '1'; os.environ.pop('PATH')",
    "directory": "import os, tempfile; d = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d)",
    "signals": "import signal; [signal.signal(s, signal.SIG_IGN) for s in (2, 13, 15, 10, 12)]",
    "umask": "import os; os.umask(0o777)",
    "limits": "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))",
    "builtins": "import builtins; builtins.len = None; builtins.print = None",
    "modules": "import sys; sys.modules.clear()",
    "descriptors": "import os; os.closerange(0, 1024)",
    "streams": "import sys; sys.stdout = sys.stderr = None",
}
WORLD = """
def f():
    import os, resource, signal, sys
    os.umask(mask := os.umask(0))
    return (
        sorted(os.environ), os.getcwd(), mask, [signal.getsignal(n) for n in (2, 13, 15)],
        resource.getrlimit(resource.RLIMIT_NOFILE), len([]), sorted(os.listdir("/proc/self/fd")),
    )
"""


@pytest.mark.parametrize("spoils", SPOILS, ids=list(SPOILS))
def test_the_next_call_sees_fresh_surroundings(make_live, spoils):
    live = make_live(slots=1).ready()
    before = live.value(WORLD)
    outcome = live.call(f"def f():\n    {SPOILS[spoils]}\n    return 1")
    assert outcome.ok, outcome.error
    assert live.value(WORLD) == before


def test_a_call_starts_with_four_descriptors_and_an_empty_stdin(live):
    code = """
def f():
    import os, sys
    return sys.stdin.read(), [(int(n), os.readlink(f"/proc/self/fd/{n}").split(":")[0])
                              for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")]
"""
    stdin, descriptors = live.value(code)
    assert stdin == ""
    low = [(n, to) for n, to in descriptors if n < 1000 and to != "/proc"]
    assert [(n, to) for n, to in low if "/fd" not in to] == [
        (0, "/dev/null"),
        (1, "pipe"),
        (2, "pipe"),
    ]


@pytest.mark.parametrize(
    "attack",
    [
        "os.closerange(3, 5000)",
        "[os.dup2(1, n) for n in FDS]",
        "[os.write(n, b'garbage' * 100) for n in FDS]",
        "[os.write(n, b'fp' + bytes(200)) for n in FDS]",
    ],
    ids=["close", "dup2", "garbage", "forged"],
)
def test_an_attack_on_the_channel_is_a_crash_of_that_call(live, attack):
    code = f"""
import os
import resource
def f():
    FDS = [n for n in map(int, os.listdir("/proc/self/fd")) if n > 1000]
    {attack}
    return 1
"""
    outcome = live.call(code, run_s=25)
    assert outcome.error_type == "WorkerCrashed", outcome
    assert live.value("def f(): return 'fine'") == "fine"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_works_in_a_call(live, method):
    code = """
def f(method):
    import multiprocessing, os, operator
    with multiprocessing.get_context(method).Pool(2) as pool:
        flags = pool.apply(eval, ("__import__('sys').flags.no_site",))
        return pool.map(operator.neg, range(3)), flags
"""
    assert live.value(code, method) == ([0, -1, -2], 0)


def test_a_worker_looks_like_any_interpreter(live):
    code = """
def f():
    import os, subprocess, sys, threading
    assert sys.argv == [""]
    assert threading.main_thread().native_id == os.getpid() == threading.get_native_id()
    assert subprocess._args_from_interpreter_flags() == []
    exit, quit, sys.flags.dev_mode, sys.flags.utf8_mode
    return __name__, sys.modules[__name__].__dict__ is globals()
"""
    assert live.value(code) == ("__flash_live__", True)


def test_fork_hooks_run_for_forks_of_user_code(live):
    code = """
def f():
    import os, threading
    threading.Timer(60, print).start()
    ran = []
    os.register_at_fork(after_in_child=lambda: ran.append(1))
    pid = os.fork()
    if pid == 0:
        os._exit(len(ran) + 10 * threading.active_count())
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""
    assert live.value(code) == 11, "threading's hook dropped the timer, ours ran"


def test_output_is_complete_and_in_order(live):
    code = """
import ctypes, logging, os, subprocess, sys
def f():
    print("print")
    print("error", file=sys.stderr)
    os.write(1, b"write\\n")
    subprocess.run(["echo", "child"])
    logging.getLogger("mine").info("record")
    ctypes.CDLL(None).puts(b"native")
"""
    outcome = live.call(code)
    assert outcome.output.split(b"\n")[:-1] == [
        b"print",
        b"error",
        b"write",
        b"child",
        b"INFO:mine:record",
        b"native",
    ]


def test_a_flood_of_output_is_bounded_and_marked(make_live):
    live = make_live(output_limit=10_000).ready()
    outcome = live.call(
        "def f():\n    import os\n    for i in range(20000): os.write(1, b'%08d' % i * 100)"
    )
    assert outcome.ok
    assert outcome.output.startswith(b"00000000")
    assert outcome.output.endswith(b"00019999")
    assert b"bytes of output cut" in outcome.output
    assert len(outcome.output) < 11_000


def test_output_of_concurrent_calls_is_separate(live):
    started = [live.start(f"def f():\n    for _ in range(200): print({i})") for i in range(8)]
    for i, one in enumerate(started):
        assert set(one.wait().output.split()) == {str(i).encode()}


def test_calls_do_not_see_the_servers_secrets(make_live, monkeypatch):
    monkeypatch.setenv("RUNPOD_API_KEY", "secret")
    live = make_live().ready()
    environment = live.value("import os\ndef f(): return dict(os.environ)")
    assert "RUNPOD_API_KEY" not in environment
    assert set(environment) <= {*WORKER_ENV, "LC_CTYPE", *PoolConfig().zygote_env()}


def test_a_pickle_that_runs_code_runs_in_the_worker(live):
    class Trap:
        def __reduce__(self):
            return os.getpid, ()

    assert live.value("def f(pid):\n    import os; return pid == os.getpid()", Trap())


# -- Deaths of flashpool's processes -----------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_zygotes_death_fails_its_calls_with_the_cause_and_the_next_works(live, number):
    code = "def f():\n    import subprocess; subprocess.run(['setsid', 'sleep', '62'])"
    started = live.start(code)
    worker = started.pid
    live.until(lambda: len(below(worker)) == 1)
    tree = [started.pid, *below(started.pid)]
    zygote = live.zygote().pid
    os.kill(zygote, number)
    outcome = started.wait()
    assert outcome.error_type == "WorkerCrashed"
    assert "zygote" in outcome.error
    assert live.value("def f(): return 'fine'") == "fine"
    assert not any(map(alive, [zygote, *tree]))


def test_a_dead_idle_zygote_is_replaced_before_the_next_call(live):
    zygote = live.zygote().pid
    os.kill(zygote, signal.SIGKILL)
    # Until the pool knows of the death, a call may get a spare that the guard kills during the call.
    live.until(lambda: zygote not in [one.pid for one in live.stats().zygotes])
    assert live.value("def f(): return 'fine'") == "fine"


def test_a_guards_death_ends_all_processes_below_it(live):
    started = live.start(
        "def f():\n    import subprocess; subprocess.run(['setsid', 'sleep', '62'])"
    )
    worker = started.pid
    live.until(lambda: len(below(worker)) == 1)
    tree = [started.pid, *below(started.pid)]
    guard = processes.parent(live.zygote().pid)
    os.kill(guard, signal.SIGKILL)
    assert started.wait().error_type == "WorkerCrashed"
    live.until(lambda: not any(map(alive, tree)))
    assert live.value("def f(): return 'fine'") == "fine"


def test_a_killed_spare_fails_no_call(make_live):
    live = make_live(slots=1).ready()
    for _ in range(20):
        spares = live.until(lambda: workers_of(live))
        for spare in spares:
            with contextlib.suppress(ProcessLookupError):  # the last call's worker, exiting
                os.kill(spare, signal.SIGKILL)
        assert live.value("def f(): return 'fine'") == "fine"


def test_a_killed_worker_is_reported_at_once(live):
    started = live.start("def f():\n    print('on', flush=True)\n    import time; time.sleep(60)")
    started.wait_for_output(b"on")
    os.kill(started.pid, signal.SIGKILL)
    outcome = started.wait()  # long before the call itself is over
    assert outcome.error_type == "WorkerCrashed"
    assert outcome.details["signal"] == "SIGKILL"


SERVER = """
import asyncio, os, sys
from support.live import Live
live = Live().ready()
started = live.start("def f():\\n    import subprocess; subprocess.run(['setsid', 'sleep', '63'])")
print(started.pid)
print(os.getpid(), flush=True)
live.run(asyncio.sleep(60))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_when_the_supervisor_dies_nothing_survives(number):
    tests = str(Path(__file__).parent.parent)
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": tests},
    )
    assert server.stdout is not None
    server.stdout.readline()
    wait_until(lambda: any(map(is_the_sleeper, below(server.pid))))
    tree = below(server.pid)
    assert len(tree) >= 4
    server.send_signal(number)
    server.wait()
    server.stdout.close()
    # Only the kernel notifies them; processes that calls started would run for a minute.
    wait_until(lambda: not any(map(alive, tree)))


def is_the_sleeper(pid: int) -> bool:
    with contextlib.suppress(OSError):  # the process may be gone by now
        return Path(f"/proc/{pid}/cmdline").read_bytes().endswith(b"sleep\x0063\0")
    return False


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


@pytest.mark.parametrize("limit", [4096, 128])
def test_a_call_that_leaves_many_processes_affects_no_other(make_live, limit):
    """The call leaves more processes than its zygote may have descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, soft), hard))
    try:
        live = make_live(slots=2).ready()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    zygote = live.zygote().pid
    other = live.start("import time\ndef f(): time.sleep(2); return 5")
    code = """
import os, time
def f():
    for _ in range(250):
        if os.fork() == 0:
            time.sleep(600)
    return 1
"""
    assert live.value(code) == 1
    assert live.value("def f(): return 2") == 2
    assert value(other.wait()) == 5
    live.until(lambda: live.stats().slots.busy == 0)
    assert live.zygote().pid == zygote
    live.until(lambda: len(workers_of(live)) == live.zygote().spares)
    assert live.value("def f(): return 3") == 3


@pytest.mark.parametrize(("own", "call"), [(0, 500), (700, 701), (1000, 1000)])
def test_the_kernels_oom_killer_prefers_calls_to_the_server(make_live, own, call):
    path = Path("/proc/self/oom_score_adj")
    before = path.read_text()
    try:
        path.write_text(str(own))
        live = make_live().ready()
        score = live.value("def f(): return int(open('/proc/self/oom_score_adj').read())")
    finally:
        try:
            path.write_text(before)
        except PermissionError:
            pass  # the test's own score stays: only root may lower it again
    assert score == call
