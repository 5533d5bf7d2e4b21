"""Programs that use a pool, from their first line to their exit: nothing hangs, nothing is left."""

import os
import signal
import subprocess
import sys

import pytest
from contract.waiting import eventually, is_alive

LIMIT_S = 50


def run(tmp_path, text, *, stdin=None, flags=()):
    path = tmp_path / "program.py"
    path.write_text(text)
    return subprocess.run(
        [sys.executable, *flags, *([] if stdin else [str(path)])],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        cwd=tmp_path,
    )


def start(tmp_path, text):
    path = tmp_path / "program.py"
    path.write_text(text)
    return subprocess.Popen(
        [sys.executable, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_script_without_a_main_guard_works(tmp_path, method):
    (tmp_path / "beside.py").write_text("def triple(x):\n    return 3 * x\n")
    done = run(
        tmp_path,
        f"""
import functools
import beside
from flashpool.pool import Pool

class Point:
    def __init__(self, x): self.x = x
    def moved(self, by): return Point(self.x + by)

def double(x): return 2 * x

pool = Pool(2, start_method={method!r})
print(pool.submit(double, 4).result())
print(list(pool.map(lambda x: double(x) + 1, range(3))))
print(pool.submit(functools.partial(double), 5).result())
print(type(pool.submit(Point(1).moved, 2).result()) is Point)
print(pool.submit(beside.triple, 4).result())
""",
    )
    assert done.stderr == ""
    assert done.stdout == "8\n[1, 3, 5]\n10\nTrue\n12\n"


def test_a_pool_works_in_a_repl(tmp_path):
    session = """
from flashpool.pool import Pool
def double(x):
    return 2 * x

pool = Pool(1)
pool.submit(double, 21).result()
"""
    done = run(tmp_path, "", stdin=session, flags=("-i", "-q"))
    assert done.stdout == "42\n"


def test_an_uncaught_error_prints_the_remote_lines(tmp_path):
    done = run(
        tmp_path,
        """
from flashpool.pool import Pool
def outer(): inner()
def inner(): raise ValueError("from there")
Pool(1).submit(outer).result()
""",
    )
    assert done.returncode == 1
    assert done.stderr.count("ValueError: from there") >= 2
    assert "direct cause" in done.stderr
    assert "in inner" in done.stderr


@pytest.mark.parametrize("ending", ["", "pool.shutdown(wait=False)", "del pool", "1 / 0"])
def test_submitted_calls_finish_before_the_exit(tmp_path, ending):
    done = run(
        tmp_path,
        f"""
import time
from flashpool.pool import Pool
def speak():
    time.sleep(0.3)
    print("apple")
pool = Pool(2)
pool.submit(speak)
{ending}
""",
    )
    assert done.stdout == "apple\n"
    assert done.returncode == (1 if ending == "1 / 0" else 0)


def test_submit_raises_while_the_interpreter_exits(tmp_path):
    done = run(
        tmp_path,
        """
import atexit
from flashpool.pool import Pool
@atexit.register
def last():
    for one in (pool, Pool(1)):
        try:
            one.submit(abs, 1)
        except RuntimeError as error:
            print(error)
pool = Pool(1)
pool.submit(abs, 1).result()
""",
    )
    assert done.stderr == ""
    assert done.stdout.count("cannot schedule new futures after") == 2


def test_an_interrupt_ends_a_wait_at_the_exit(tmp_path):
    program = start(
        tmp_path,
        """
import threading, time
from flashpool.pool import Pool
pool = Pool(1, grace_s=0.2)
future = pool.submit(time.sleep, 600)
# The latest comes first: what the pool does at the exit follows this.
threading._register_atexit(print, "leaving", flush=True)
""",
    )
    with program:
        assert program.stdout.readline() == "leaving\n"
        program.send_signal(signal.SIGINT)
        program.communicate(timeout=LIMIT_S)


def test_a_surviving_fork_does_not_keep_the_pool_alive(tmp_path):
    program = start(
        tmp_path,
        """
import os, time
from flashpool.pool import Pool
pool = Pool(2)
pid = pool.submit(os.getpid).result()
zygotes = [one.pid for one in pool.stats().zygotes]
child = os.fork()
if child == 0:
    time.sleep(600)
print(child, *zygotes, flush=True)
time.sleep(600)
""",
    )
    with program:
        child, *zygotes = map(int, program.stdout.readline().split())
        program.kill()
        try:
            eventually(lambda: not any(is_alive(pid) for pid in zygotes))
            assert is_alive(child)
        finally:
            os.kill(child, signal.SIGKILL)


def test_many_open_pools_end_with_the_program(tmp_path):
    done = run(
        tmp_path,
        """
from flashpool.pool import Pool
pools = [Pool(1) for _ in range(4)]
print([pool.submit(abs, -i).result() for i, pool in enumerate(pools)])
""",
    )
    assert (done.stdout, done.stderr) == ("[0, 1, 2, 3]\n", "")
