"""Zygotes: how they start, fail to start, are replaced, and are stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import operator
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import pytest
from process.resident_calls import begin, result, thing

from flashpool.pool._child import processes
from flashpool.pool.errors import EnvironmentStartFailed, InstanceConflict, Overloaded, PoolClosed
from flashpool.pool.scheduling import zygote_table
from flashpool.pool.workers.ends import watchdog
from support import wants
from support.interpreters import virtualenv
from support.live import WORKER_ENV, alive, value
from support.pids_group import pids_group

NEXT = "def f(): return 'fine'"


@pytest.fixture
def interpreter(tmp_path):
    """Create a virtualenv of this Python with the given modules and start-up code."""
    return lambda **files: str(virtualenv(tmp_path / "env", **files))


def test_an_interpreter_without_our_packages_gets_only_the_runtimes(make_live, interpreter):
    live = make_live(base_python=interpreter()).ready()
    assert live.value("def f(x):\n    import cloudpickle; return lambda: x", 5)() == 5
    assert live.call("def f():\n    import fastapi").error_type == "ModuleNotFoundError"


@pytest.mark.parametrize(
    ("start_up", "words"),
    [
        ("import sys; sys.exit('bad day')", "bad day"),
        ("import os; os._exit(9)", "exit code 9"),
        ("import os; os.kill(os.getpid(), 11)", "signal 11"),
        ("raise BaseException('odd')", "odd"),
        ("print('y' * 10_000_000, flush=True); import os; os._exit(3)", "yyyy"),
        ("while True: pass", "did not come up within 1 s"),
    ],
    ids=["exits", "_exits", "segfaults", "raises", "floods", "loops"],
)
def test_a_failed_start_up_is_reported_with_its_output(make_live, interpreter, start_up, words):
    # Short for the start-up that is to time out; the others end by themselves.
    limit_s = 1.0 if "did not come up" in words else 30.0
    live = make_live(base_python=interpreter(at_start=start_up), start_timeout_s=limit_s)
    outcome = live.call(NEXT)
    assert outcome.error_type == "EnvironmentStartFailed", outcome
    assert words in outcome.error
    with pytest.raises(EnvironmentStartFailed, match="did not start"):
        live.run(live.supervisor.wait_ready())


def test_a_missing_interpreter_is_an_error(make_live, tmp_path):
    live = make_live(base_python=str(tmp_path / "no-python"))
    outcome = live.call(NEXT)
    assert outcome.error_type == "EnvironmentStartFailed"
    assert "No such file" in outcome.error


def test_a_crash_loop_is_cut_off(make_live, interpreter):
    live = make_live(base_python=interpreter(at_start="import os; os._exit(9)"))
    for _ in range(12):
        assert live.call(NEXT).error_type == "EnvironmentStartFailed"
    assert sum(live.supervisor._components.zygote_set.history.starts.values()) <= 5


def test_the_base_is_restarted_when_its_starts_are_allowed_again(make_live, monkeypatch):
    live = make_live().ready()

    def kill_all() -> None:
        for zygote in live.stats().zygotes:
            if zygote.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(zygote.pid, signal.SIGKILL)

    live.until(lambda: kill_all() or not live.stats().zygotes)
    assert not live.supervisor.ready
    monkeypatch.setattr(zygote_table, "RESTART_WINDOW_S", 0.1)
    live.until(lambda: live.supervisor.ready)


def test_a_thread_at_start_up_makes_workers_spawn_and_says_why(make_live, interpreter):
    threads = "import threading, time; threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()"
    live = make_live(base_python=interpreter(at_start=threads)).ready()
    assert live.value("import threading\ndef f(): return threading.active_count()") == 2
    zygote = live.zygote()
    assert zygote.start_method == "spawn"
    assert "thread" in zygote.reason
    assert live.call(NEXT).receipt.start_method == "spawn"


def test_spawned_workers_that_never_become_ready_are_killed(make_live, interpreter):
    live = make_live(
        base_python=interpreter(at_start="import time; time.sleep(1000)"),
        start_method="spawn",
        grace_s=0.1,
    ).ready()
    # Short for workers; the zygote itself has already started.
    dog = live.supervisor._components.watchdog
    dog._config = replace(dog._config, start_timeout_s=0.5)
    outcome = live.call(NEXT, queue_s=3)
    assert outcome.error_type in {"Timeout", "EnvironmentStartFailed"}


def test_imports_of_calls_are_preloaded_for_that_function_only(make_live, interpreter):
    live = make_live(
        base_python=interpreter(heavy="import os\nMADE_BY = [os.getpid()]", heavy_too="x = 1"),
        slots=1,
    ).ready()
    code = "def f():\n    import os, heavy; return os.getpid() in heavy.MADE_BY"
    assert live.value(code) is True
    live.until(lambda: ("ready", 1) in [(z.state, z.profile) for z in live.stats().zygotes])
    assert live.value(code) is False, "it was imported by the zygote"
    assert live.call(code).receipt.preloaded
    assert not live.call(NEXT).receipt.preloaded
    other = "def f():\n    import heavy_too"
    assert live.call(other).ok
    live.until(lambda: ("ready", 2) in [(z.state, z.profile) for z in live.stats().zygotes])
    assert live.call(other).receipt.preloaded
    assert live.call(code).receipt.preloaded


def test_a_learned_module_that_starts_a_thread_is_left_out(make_live, interpreter):
    threads = "import threading, time; threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()"
    live = make_live(base_python=interpreter(threads=threads), slots=1).ready()
    code = "def f():\n    import threads; return 1"
    assert live.value(code) == 1
    live.until(lambda: "threads" in live.zygote().skipped)
    assert "thread" in live.zygote().skipped["threads"]
    assert live.value(code) == 1
    assert live.call(code).receipt.start_method == "fork"


def test_a_learned_module_that_kills_its_process_is_left_out(make_live, interpreter):
    kills = "import os\nif not os.environ.get('MAY'): os._exit(4)"
    live = make_live(base_python=interpreter(kills=kills), slots=1).ready()
    code = "def f():\n    import kills; return 1"
    assert live.value(code, call={"env": {"MAY": "1"}}) == 1
    live.until(lambda: "kills" in live.zygote().skipped)
    assert live.value(code, call={"env": {"MAY": "1"}}) == 1


#: A class whose random token workers cannot renew.
BREAKS_WORKERS = """
import secrets
HERE = [os.getpid()]
class Kind(type):
    def __setattr__(cls, name, value):
        if os.getpid() not in HERE: {}
        super().__setattr__(name, value)
class Breaks(metaclass=Kind):
    TOKEN = secrets.token_hex(16)
"""
BREAKS_FORKS = {
    "exits": BREAKS_WORKERS.format("os._exit(3)"),
    "crashes": BREAKS_WORKERS.format("os.abort()"),
    "hangs": BREAKS_WORKERS.format("time.sleep(1000)"),
    "raises": BREAKS_WORKERS.format("raise ValueError"),
    "ignores-children": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "few-files": "resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(7)[1]))",
}


@pytest.mark.parametrize("breaks", BREAKS_FORKS, ids=list(BREAKS_FORKS))
def test_a_learned_module_that_breaks_forks_is_left_out(
    make_live, interpreter, monkeypatch, breaks
):
    if breaks == "hangs":
        monkeypatch.setattr(watchdog, "BEGIN_S", 1.0)
    module = f"import os, resource, signal, time\n{BREAKS_FORKS[breaks]}"
    live = make_live(base_python=interpreter(breaks=module), slots=2).ready()
    code = "def f():\n    import breaks; return 1"
    assert live.value(code) == 1

    def left_out() -> bool:
        return any("breaks" in z.skipped for z in live.stats().zygotes if not z.profile)

    deadline = time.monotonic() + 30
    while not left_out():
        assert time.monotonic() < deadline
        for one in [live.start(code) for _ in range(3)]:
            outcome = one.wait()
            assert outcome.ok, outcome.error
    assert live.zygote().skipped["breaks"]
    outcome = live.call(code)
    assert outcome.ok
    assert not outcome.receipt.preloaded
    assert outcome.receipt.start_method == "fork"
    live.until(lambda: [z.profile for z in live.stats().zygotes] == [0])


@pytest.mark.parametrize("hook", ["os._exit(3)", "os.abort()", "HITS.append(1)"])
def test_fork_hooks_of_preloaded_modules_run_for_forks_of_user_code(make_live, interpreter, hook):
    module = f"import os\nHITS = []\nos.register_at_fork(after_in_child=lambda: {hook})"
    live = make_live(base_python=interpreter(hooked=module), slots=1).ready()
    code = (
        "def f():\n    import hooked, os\n    pid = os.fork()\n    if not pid: os._exit(len(hooked.HITS))\n"
        "    return len(hooked.HITS), os.waitpid(pid, 0)[1]"
    )
    first = live.value(code)
    live.until(lambda: any(z.profile and z.state == "ready" for z in live.stats().zygotes))
    outcome = live.call(code)
    assert outcome.receipt.preloaded
    assert value(outcome) == first


def test_a_loaded_zygote_that_dies_before_it_forks_is_given_up(make_live, interpreter):
    live = make_live(base_python=interpreter(mine="x = 1"), slots=1, max_spares=0).ready()
    errors: list[object] = []
    live.loop.set_exception_handler(lambda _loop, context: errors.append(context))
    code = "def f():\n    import mine; return 1"
    assert live.value(code) == 1
    live.until(lambda: any(z.profile and z.state == "ready" for z in live.stats().zygotes))
    os.kill(live.zygote(1).pid, signal.SIGKILL)
    live.until(lambda: [z.profile for z in live.stats().zygotes] == [0])
    outcome = live.call(code)
    assert outcome.ok
    assert not outcome.receipt.preloaded
    assert not errors


def test_an_interpreter_whose_forks_die_spawns_workers(make_live, interpreter):
    exits = "import os, sys\nos.register_at_fork(after_in_child=lambda: os._exit(3))"
    live = make_live(base_python=interpreter(at_start=exits)).ready()
    live.until(lambda: [z.start_method for z in live.stats().zygotes] == ["spawn"])
    assert live.value(NEXT) == "fine"
    assert "before user code began" in live.zygote().reason


def test_spares_killed_from_outside_do_not_count_against_modules(make_live, interpreter):
    live = make_live(base_python=interpreter(mine="x = 1"), slots=1).ready()
    code = "def f():\n    import mine; return 1"
    assert live.value(code) == 1
    live.until(lambda: any(z.profile and z.spares for z in live.stats().zygotes))
    assert live.call(code).receipt.preloaded
    for _ in range(4):
        live.until(lambda: live.zygote(1).spares and live.stats().slots.busy == 0)
        pid = next(pid for pid in processes.children(live.zygote(1).pid) if alive(pid))
        os.kill(pid, signal.SIGKILL)
        assert live.call(code).receipt.preloaded


@pytest.mark.slow
def test_a_zygote_that_is_killed_often_is_restarted_and_logged(live):
    """For example by its own calls. Since the zygote can start, no error says otherwise."""
    kills = "import os, time\ndef f(): os.kill(os.getppid(), 9); time.sleep(60)"
    for _ in range(7):
        outcome = live.start(kills).wait()
        assert outcome.error_type == "WorkerCrashed", outcome
    assert "7 times in" in outcome.error
    assert live.value(NEXT) == "fine"
    live.until(lambda: live.supervisor.ready)
    assert "killed by signal 9 (7 times in" in live.zygote().last_failure


def test_a_library_that_ends_its_threads_before_a_fork_is_preloaded(make_live):
    """NumPy's OpenBLAS does so where it starts threads."""
    live = make_live(slots=1, worker_env={"OPENBLAS_NUM_THREADS": "2"}).ready()
    code = (
        "def f():\n    import numpy; return float((numpy.ones((300, 300)) @ numpy.ones(300)).sum())"
    )
    assert live.value(code) == 300.0**2 * 300 / 300
    live.until(lambda: any(z.profile and z.state == "ready" for z in live.stats().zygotes))
    outcome = live.call(code)
    assert outcome.receipt.preloaded, live.zygote().skipped
    assert live.value(code) == 90000.0


def test_calls_get_their_share_of_the_cores(make_live):
    from flashpool.pool.config import usable_cores

    code = "import os\ndef f(): return os.environ['OMP_NUM_THREADS'], os.environ['MKL_NUM_THREADS']"
    live = make_live(slots=1, worker_env={"MKL_NUM_THREADS": "7"}).ready()
    assert live.value(code) == (str(usable_cores()), "7")


def test_modules_of_a_setting_are_preloaded(make_live, interpreter):
    live = make_live(base_python=interpreter(mine="x = 1"), preload=("mine", "not_there")).ready()
    assert live.value("import sys\ndef f(): return 'mine' in sys.modules") is True
    assert "not_there" in live.zygote().skipped
    assert live.zygote().preloaded == 1


def test_the_modules_of_a_request_are_not_learned(live):
    import json

    body = json.dumps(
        {
            "function_name": "f",
            "function_code": "def f():\n    import helper",
            "modules": {"helper.py": "x = 1"},
        }
    )
    assert live.call("def f(): pass", call={"body": body.encode(), "function_key": "k"}).ok
    assert [z.profile for z in live.stats().zygotes] == [0]


def test_idle_spares_are_dismissed_and_return(make_live):
    live = make_live(spare_idle_s=0.5).ready()
    live.until(lambda: live.zygote().spares == 2)
    live.until(lambda: live.zygote().spares == 0)
    live.until(lambda: live.zygote().workers == 0)
    assert live.value(NEXT) == "fine"


def test_a_stopped_zygote_is_detected_and_replaced(make_live, monkeypatch):
    from flashpool.pool.workers.ends import watchdog

    monkeypatch.setattr(watchdog, "ANSWER_S", 1.5)
    live = make_live(slots=1).ready()
    live.until(lambda: live.zygote().spares == 2)
    stopped = live.zygote().pid
    os.kill(stopped, signal.SIGSTOP)
    for _ in range(2):
        assert live.value(NEXT) == "fine", "a spare takes it"
    assert live.value(NEXT) == "fine", "and a new zygote the next"
    assert live.zygote().pid != stopped
    assert not alive(stopped)


def test_a_stopped_guard_does_not_delay_a_stop(make_live):
    live = make_live().ready()
    guard = processes.parent(live.zygote().pid)
    os.kill(guard, signal.SIGSTOP)
    live.run(asyncio.wait_for(live.supervisor.stop(), 30))
    assert not alive(guard)


def test_a_drain_refuses_new_calls_and_waits_for_running_ones(live):
    running = live.start("def f():\n    import time; time.sleep(0.3); return 'done'")
    assert running.pid
    draining = live.loop.create_task(live.supervisor.drain(30))
    live.run(asyncio.sleep(0))
    assert not live.supervisor.ready
    with pytest.raises(Overloaded, match="draining"):
        live.start(NEXT)
    assert live.run(draining) is True
    assert running.sink.future.done()
    assert running.wait().ok


def test_a_drain_has_a_limit_and_a_stop_ends_the_rest(live):
    running = live.start(
        "def f():\n    print('working', flush=True)\n    import time; time.sleep(60)"
    )
    running.wait_for_output(b"working")
    worker = running.pid
    assert live.run(live.supervisor.drain(0.2)) is False
    live.run(live.supervisor.stop("the machine is needed"))
    assert running.sink.future.done()
    outcome = running.wait()
    assert outcome.error_type == "Cancelled"
    assert "the machine is needed" in outcome.error
    assert outcome.output == b"working\n"
    assert outcome.receipt.pid == worker
    assert outcome.receipt.total_s >= 0.2
    assert not alive(worker)
    with pytest.raises(PoolClosed):
        live.start(NEXT)


def test_a_full_queue_refuses_calls(make_live):
    live = make_live(slots=1, queue_limit=2).ready()
    blocker = live.start("def f():\n    import time; time.sleep(60)")
    assert blocker.pid
    waiting = [live.start(NEXT) for _ in range(2)]
    with pytest.raises(Overloaded, match="queue is full"):
        live.start(NEXT)
    queue = live.stats().queue
    assert queue.depth == queue.by_phase["slot"].depth == 2
    assert queue.oldest_age_s == queue.by_phase["slot"].oldest_age_s is not None
    live.supervisor.cancel(blocker.id)
    assert all(one.wait().ok for one in waiting)
    queue = live.stats().queue
    assert queue.refused == queue.by_phase["slot"].refused == 1


def test_a_conflict_over_an_instance_is_not_reported_as_a_full_queue(live):
    result(live, "a", "inc")
    with pytest.raises(InstanceConflict):
        begin(live, "a", "inc", code=thing("def more(self): pass"))
    assert live.stats().queue.refused == 0


@pytest.fixture
def group():
    with pids_group() as group:
        yield group


def test_forks_that_fail_for_lack_of_processes_are_retried(group, make_live):
    """Failed forks are retried, and the calls that wait for them are not lost."""
    live = make_live(slots=2).ready()
    live.until(lambda: live.zygote().spares == 2)
    group.take(live.zygote().pid)
    group.allow_no_more()
    started = [live.start(NEXT) for _ in range(4)]
    live.until(lambda: live.zygote().last_failure)
    assert "cannot fork" in live.zygote().last_failure
    (short,) = live.stats().shortages
    assert (short.who, "Resource temporarily" in short.what) == ("zygote base#0", True)
    group.allow_all()
    assert all(one.wait().ok for one in started)
    assert live.zygote().last_failure is None
    assert live.stats().shortages == []


def test_a_zygote_whose_limit_of_open_files_is_lowered_raises_it(make_live):
    """Calls have the limit that the zygote started with."""
    live = make_live(slots=2).ready()
    zygote = live.zygote().pid
    live.until(lambda: live.zygote().spares == 2)
    soft, hard = resource.prlimit(zygote, resource.RLIMIT_NOFILE)
    used = len(os.listdir(f"/proc/{zygote}/fd"))
    resource.prlimit(zygote, resource.RLIMIT_NOFILE, (used, hard))
    code = "def f():\n    import resource\n    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]"
    started = [live.start(code) for _ in range(8)]
    assert [value(one.wait()) for one in started] == [soft] * 8
    assert live.zygote().pid == zygote


def test_descriptors_and_tables_do_not_grow(make_live):
    """After many calls, descriptors and tables are as they were after a few."""
    live = make_live(slots=2).ready()

    def size() -> tuple[int, int, int, int] | None:
        zygote = live.zygote()
        if live.stats().slots.busy or zygote.workers != zygote.spares:
            return None
        one, spares = live.supervisor._components, zygote.spares
        own = len(os.listdir("/proc/self/fd")) - 2 * spares
        theirs = len(os.listdir(f"/proc/{zygote.pid}/fd")) - spares
        return own, theirs, len(one.calls), len(one.poller) - 2 * spares

    def many() -> None:
        waiting = [
            live.start(NEXT if i % 10 else "import os\ndef f(): os._exit(1)") for i in range(200)
        ]
        for one in waiting:
            one.wait()

    many()
    before = live.until(size)
    many()
    # Spares requested while all slots were busy may still be exiting.
    live.until(lambda: (now := size()) is not None and all(map(operator.le, now, before)))


STAND_IN_DRIVER = """
static int initialised = 0;
int cuInit(unsigned flags) { initialised = 1; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return initialised ? 0 : 3; }
"""


@pytest.fixture(scope="module")
def cuda_driver(tmp_path_factory):
    """A library with the driver's name and the two functions that the check relies on."""
    compiler = wants.c_compiler()
    folder = tmp_path_factory.mktemp("driver")
    (folder / "cuda.c").write_text(STAND_IN_DRIVER)
    library = folder / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, folder / "cuda.c"], check=True)
    return library


def test_a_module_that_initialises_cuda_is_not_forked_with(make_live, interpreter, cuda_driver):
    loads = f"import ctypes\nDRIVER = ctypes.CDLL({str(cuda_driver)!r})\n"
    live = make_live(
        base_python=interpreter(loads=loads, uses=loads + "DRIVER.cuInit(0)"), slots=1
    ).ready()
    for module in ("loads", "uses"):
        assert live.call(f"def f():\n    import {module}").ok
    live.until(lambda: "uses" in live.zygote().skipped)
    assert "CUDA" in live.zygote().skipped["uses"]
    live.until(lambda: any(z.profile and z.state == "ready" for z in live.stats().zygotes))
    assert live.call("def f():\n    import loads").receipt.preloaded, "to load it is harmless"
    assert live.call("def f():\n    import uses").ok


def test_cuda_initialised_at_start_up_makes_workers_spawn(make_live, interpreter, cuda_driver):
    start_up = f"import ctypes; ctypes.CDLL({str(cuda_driver)!r}).cuInit(0)"
    live = make_live(base_python=interpreter(at_start=start_up)).ready()
    assert live.value(NEXT) == "fine"
    assert live.zygote().start_method == "spawn"
    assert "CUDA" in live.zygote().reason


def test_a_temporary_lack_of_descriptors_is_survived(make_live):
    """Workers whose descriptors cannot be received are dismissed, and forked again later."""
    live = make_live(slots=8).ready()
    assert live.value(NEXT) == "fine"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 4, hard))
    try:
        started = [live.start(NEXT) for _ in range(12)]
        live.run(asyncio.sleep(1))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert all(one.wait().ok for one in started)


def test_a_zygote_that_dies_under_a_stopped_guard_is_cleaned_up(live):
    running = live.start("def f():\n    import time; time.sleep(60)")
    worker, zygote = running.pid, live.zygote().pid
    guard = processes.parent(zygote)
    os.kill(guard, signal.SIGSTOP)
    os.kill(zygote, signal.SIGKILL)
    assert running.wait().error_type == "WorkerCrashed"
    assert live.value(NEXT) == "fine"
    assert not any(map(alive, (guard, worker)))


def test_nothing_outlives_a_zygote_and_its_guard_that_are_killed_together(make_live, tmp_path):
    live = make_live(worker_env={**WORKER_ENV, "TMPDIR": str(tmp_path)}).ready()
    request = {
        "function_name": "f",
        "function_code": "def f():\n    import helper, time; print('on', flush=True); time.sleep(60)",
        "modules": {"helper.py": "x = 1"},
    }
    started = live.start("def f(): pass", call={"body": json.dumps(request).encode()})
    started.wait_for_output(b"on")
    worker, zygote = started.pid, live.zygote().pid
    guard = processes.parent(zygote)
    theirs = os.listdir(tmp_path)
    assert theirs
    os.kill(guard, signal.SIGSTOP)  # neither of them may clean up
    os.kill(zygote, signal.SIGKILL)
    os.kill(guard, signal.SIGKILL)
    assert started.wait().error_type == "WorkerCrashed"
    assert live.value(NEXT) == "fine"
    live.until(lambda: not alive(worker))
    live.until(lambda: not set(theirs) & set(os.listdir(tmp_path)))


def test_a_workers_death_is_reported_although_the_zygote_is_stopped(live, monkeypatch):
    monkeypatch.setattr(watchdog, "STOP_MARGIN_S", 0.5)
    code = "import os, time\ndef f():\n    print('on', flush=True); time.sleep(1); os._exit(3)"
    started = live.start(code)
    started.wait_for_output(b"on")
    os.kill(live.zygote().pid, signal.SIGSTOP)
    assert started.wait().error_type == "WorkerCrashed"
    assert live.value(NEXT) == "fine"


def test_a_stopped_guard_is_killed_after_its_server():
    """The guard cannot notice the server's death, but its zygote does."""
    script = "\n".join(
        [
            "import os, signal",
            "from flashpool.pool import Pool",
            "pool = Pool(max_workers=1)",
            "pool.submit(abs, 1).result()",
            "print(pool.stats().zygotes[0].pid, flush=True)",
            "signal.pause()",
        ]
    )
    server = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    with server.stdout:
        zygote = int(server.stdout.readline())
    guard = processes.parent(zygote)
    os.kill(guard, signal.SIGSTOP)
    server.kill()
    server.wait()
    deadline = time.monotonic() + 20
    while alive(guard) or alive(zygote):
        assert time.monotonic() < deadline, (alive(guard), alive(zygote))
        time.sleep(0.01)


def test_a_worker_maps_each_library_with_one_part_that_is_not_writable(make_live):
    """Each mapping makes every call slower."""
    code = """
        def f():
            with open("/proc/self/maps") as maps:
                rows = [line.split() for line in maps if ".so" in line]
            return [(row[1], row[5].rpartition("/")[2]) for row in rows]
    """
    parts = make_live().ready().value(textwrap.dedent(code))
    libraries = [
        path for mode, path in parts if mode == "r-xp" and not path.startswith("libpython")
    ]
    assert len(libraries) == len(set(libraries))
    assert any(path.startswith("libc.") for path in libraries)
    for path in libraries:
        modes = [mode for mode, other in parts if other == path]
        assert modes[0] == "r-xp"
        assert modes.count("r--p") <= 1  # the part that is written only while the library is loaded
