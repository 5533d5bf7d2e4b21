"""Programs that stop by Ctrl-C, SIGTERM, an exit or an error: no call keeps running unseen.

Each program is a real one, in a session of its own; an interrupt goes to its whole process
group, as from a terminal.
"""

import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest
from contract.waiting import eventually, is_alive

LIMIT_S = 50
#: A program exits well within a second; the rest is for a busy machine.
AT_ONCE_S = 5.0

#: The beginning of each program. The call `here` reports that it runs, then runs for long.
HEAD = """
import asyncio, atexit, concurrent.futures, os, signal, sys, threading, time
from flashpool.pool import Pool

def here(seconds=600, *_):
    open(f"running.{os.getpid()}", "w").close()
    time.sleep(seconds)

def stubborn():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    here()

def items():
    yield 1
    time.sleep(0.5)  # its reader has that, and waits for the next
    here()
"""


class Program:
    """A running program, and its running calls."""

    def __init__(self, folder, text, *, python=sys.executable, stdin=subprocess.DEVNULL, **options):
        self.folder = folder
        path = folder / "program.py"
        path.write_text(HEAD + text)
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        self.process = subprocess.Popen(
            [python, str(path)],
            cwd=folder,
            text=True,
            stdin=stdin,
            start_new_session=True,
            **options,
        )

    def calls(self):
        return [int(path.suffix[1:]) for path in self.folder.glob("running.*")]

    def until_running(self, number=1):
        eventually(lambda: len(self.calls()) >= number or self.process.poll() is not None)
        assert self.process.poll() is None, self.process.communicate()
        return self

    def interrupt(self):
        os.killpg(self.process.pid, signal.SIGINT)
        return self

    def ended(self, within=AT_ONCE_S):
        """Wait for the program; return exit status, stdout and stderr."""
        began = time.monotonic()
        out, err = self.process.communicate(timeout=LIMIT_S)
        taken = time.monotonic() - began
        for pid in self.calls():
            assert not is_alive(pid)
        assert taken < within, (taken, err)
        return self.process.returncode, out, err


#: A worker may have begun before the program knew; then the call counts as waiting.
ONE_WAS_ENDED = r"1 (running call was ended|waiting call was cancelled)"


@pytest.fixture
def program(tmp_path):
    started = []

    def start(text, **options):
        started.append(Program(tmp_path, text, **options))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
        for pipe in (one.process.stdout, one.process.stderr):
            if pipe is not None:
                pipe.close()


@pytest.mark.parametrize(
    "text",
    [
        "with Pool(2) as p: p.submit(here).result()",
        "with Pool(2).options(timeout=900) as p: p.submit(here).result()",
        "with Pool(2) as p: p.submit(here)",
        "with Pool(2) as p: p.submit(here).exception()",
        "with Pool(2) as p: list(p.map(here, [600, 600]))",
        "with Pool(2) as p: concurrent.futures.wait([p.submit(here)])",
        "with Pool(2) as p: list(concurrent.futures.as_completed([p.submit(here)]))",
        "with Pool(2) as p: list(p.submit(items).result())",
        "with Pool(2) as p:\n    p.submit(here)\n    time.sleep(600)",
        "with Pool(2) as p, p.instance(str) as one:\n    one.upper().result()\n    p.submit(here).result()",
        "p = Pool(2)\np.submit(here).result()",
        "p = Pool(2)\np.submit(here)\np.submit(here)\ntime.sleep(600)",
        "p = Pool(2)\np.submit(here)\np.shutdown()",
        "p = Pool(2)\np.submit(here)",
        "p = Pool(2)\np.submit(here)\nsys.exit(0)",
        """
async def main():
    with Pool(2) as p:
        p.submit(here)
        await p.submit(here)
asyncio.run(main())
""",
        """
def work():
    with Pool(2) as p: p.submit(here).result()
thread = threading.Thread(target=work)
thread.start()
thread.join()
""",
    ],
)
def test_one_interrupt_ends_a_script_by_its_signal(program, text):
    status, _, err = program(text).until_running().interrupt().ended()
    assert status == -signal.SIGINT
    assert "KeyboardInterrupt" in err
    assert re.search(r"running calls? (was|were) ended|1 waiting call", err), err


def test_an_interrupt_in_the_middle_of_a_submission(program):
    text = """
from flashpool.pool.executor.engine import Engine

submit = Engine.submit

def interrupted(self, task, call):
    submit(self, task, call)
    if call.label != "abs":
        while not [one for one in os.listdir() if one.startswith("running.")]:
            time.sleep(0.01)
        raise KeyboardInterrupt

Engine.submit = interrupted
pool = Pool(1)
try:
    pool.submit(here)
except KeyboardInterrupt:
    print(pool.submit(abs, -3).result())
"""
    status, out, err = program(text).ended(within=9)
    assert (status, out) == (0, "3\n")
    assert re.fullmatch(rf"flashpool: KeyboardInterrupt: {ONE_WAS_ENDED}\.\n", err), err


def test_a_shell_sees_130_and_stops(program, tmp_path):
    one = program("with Pool(2) as p: p.submit(here).result()", python=sys.executable)
    one.process.kill()
    one.process.communicate()
    for path in tmp_path.glob("running.*"):
        path.unlink()
    # The shell gets the interrupt, too, and acts on its child's exit status.
    script = f"{sys.executable} program.py; echo status $?"
    shell = subprocess.Popen(
        ["sh", "-c", f"trap : INT; {script}"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    eventually(lambda: list(tmp_path.glob("running.*")))
    os.killpg(shell.pid, signal.SIGINT)
    out, _ = shell.communicate(timeout=LIMIT_S)
    assert out == "status 130\n"


def test_ctrl_c_on_a_terminal(program):
    leader, follower = pty.openpty()
    one = program(
        "import fcntl, termios\n"
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "with Pool(2) as p: p.submit(here).result()",
        stdin=follower,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    one.until_running()
    os.write(leader, b"\x03")
    written = b""
    try:
        while chunk := os.read(leader, 65536):
            written += chunk
    except OSError:  # raised by a terminal whose other end is closed
        pass
    os.close(leader)
    status, _, _ = one.ended()
    assert status == -signal.SIGINT
    said = re.findall(rf"flashpool: KeyboardInterrupt: {ONE_WAS_ENDED}\.", written.decode())
    assert len(said) == 1, written


def test_waiting_calls_are_cancelled_and_counted(program):
    text = """
def hold():
    with Pool(1) as p:
        calls = [p.submit(here) for _ in range(4)]
        try:
            time.sleep(600)
        finally:
            calls.reverse()
            threads = threading.Thread(target=lambda: [print(type(one.exception()).__name__) if not one.cancelled() else print("cancelled") for one in calls])
            kept.append((threads, calls))
kept = []
try:
    hold()
except KeyboardInterrupt:
    for thread, calls in kept:
        thread.start()
        thread.join()
"""
    status, out, err = program(text).until_running().interrupt().ended()
    assert status == 0
    assert out == "cancelled\ncancelled\ncancelled\nCancelled\n"
    assert (
        "flashpool: KeyboardInterrupt left the block of a Pool: 1 running call was ended "
        "and 3 waiting calls were cancelled." in err
    )


def test_a_second_interrupt_kills_slow_calls(program):
    one = program("with Pool(2, grace_s=40) as p: p.submit(stubborn).result()").until_running()
    time.sleep(0.2)  # time to install its handler
    one.interrupt()
    for line in one.process.stderr:
        if "40 s to exit in (grace_s). Ctrl-C kills them now." in line:
            break
    else:
        pytest.fail("nothing was said of the grace")
    status, _, _ = one.interrupt().ended()
    assert status == -signal.SIGINT


def test_an_interrupt_while_an_environment_is_built(program, tmp_path):
    package = tmp_path / "slow"
    package.mkdir()
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "slow"\nversion = "1"\n'
    )
    (package / "backend.py").write_text(
        "import os, time\n"
        f"open(os.path.join({str(tmp_path)!r}, f'running.{{os.getpid()}}'), 'w').close()\n"
        "time.sleep(600)\n"
    )
    text = f"""
from flashpool.envs import EnvSettings
from pathlib import Path
settings = EnvSettings(volume=Path("volume").absolute(), base_python=Path(sys.executable))
with Pool(1, dependencies=["slow @ file://{package}"], environments=settings) as p:
    p.submit(abs, -1).result()
"""
    status, _, err = program(text).until_running().interrupt().ended()
    assert status == -signal.SIGINT
    assert "1 waiting call was cancelled" in err


def test_an_interrupt_while_the_pool_starts(program, tmp_path):
    # An interpreter that never starts up.
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho > "{tmp_path}/running.$$"\nexec sleep 600\n')
    python.chmod(0o755)
    text = f"""
with Pool(1, base_python={str(python)!r}, python_version="%d.%d" % sys.version_info[:2]) as p:
    p.submit(abs, -1)
"""
    status, _, err = program(text).until_running().interrupt().ended()
    assert status == -signal.SIGINT
    assert "Exception ignored" not in err


@pytest.mark.parametrize(
    ("leaving", "status", "name"),
    [
        ("sys.exit(3)", 3, "SystemExit"),
        ("sys.exit()", 0, "SystemExit"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt"),
    ],
)
def test_an_exit_in_the_with_block_ends_running_calls(program, leaving, status, name):
    text = f"""
with Pool(1) as p:
    p.submit(here)
    while not [one for one in os.listdir() if one.startswith("running.")]:
        time.sleep(0.01)
    {leaving}
"""
    found, _, err = program(text).until_running().ended()
    assert found == status
    assert re.search(f"flashpool: {name} left the block of a Pool: {ONE_WAS_ENDED}\\.", err), err


def test_sigterm_ends_the_program_and_all_below_it(program):
    one = program("with Pool(2) as p: p.submit(here).result()").until_running()
    pids = one.calls()
    one.process.send_signal(signal.SIGTERM)
    one.process.communicate(timeout=LIMIT_S)
    assert one.process.returncode == -signal.SIGTERM
    eventually(lambda: not any(map(is_alive, pids)))


def test_an_error_lets_running_calls_finish(program, tmp_path):
    text = """
def write():
    with open("whole.txt", "w") as file:
        open(f"running.{os.getpid()}", "w").close()
        for number in range(5):
            file.write(f"{number}\\n")
            time.sleep(0.1)

with Pool(1) as p:
    first, *rest = [p.submit(write) for _ in range(4)]
    while not first.running():
        time.sleep(0.01)
    raise ValueError("mine")
"""
    one = program(text)
    _, err = one.process.communicate(timeout=LIMIT_S)
    assert one.process.returncode == 1
    assert len(one.calls()) == 1
    assert (tmp_path / "whole.txt").read_text() == "0\n1\n2\n3\n4\n"
    said, rest = err.split("\n", 1)
    assert said.startswith(
        "flashpool: ValueError left the block of a Pool: 3 waiting calls were cancelled; "
        "1 running call may finish."
    )
    assert rest.endswith("ValueError: mine\n")


def test_with_on_error_an_exception_ends_running_calls(program):
    text = """
with Pool(1, on_error="terminate") as p:
    p.submit(here)
    while not [one for one in os.listdir() if one.startswith("running.")]:
        time.sleep(0.01)
    raise ValueError("mine")
"""
    status, _, err = program(text).until_running().ended()
    assert status == 1
    assert re.search(rf"ValueError left the block of a Pool: {ONE_WAS_ENDED}\.", err), err


@pytest.mark.parametrize(
    "leaving", ["", "raise ValueError", "sys.exit(1)", "raise KeyboardInterrupt"]
)
def test_no_message_is_printed_if_no_call_was_ended(program, leaving):
    _, _, err = program(f"with Pool(1) as p:\n    p.submit(abs, 1).result()\n    {leaving}").ended(
        9
    )
    assert "flashpool:" not in err


def test_a_pool_in_an_exit_hook_is_refused(program):
    text = """
@atexit.register
def last():
    with Pool(1) as p:
        p.submit(abs, 1)
"""
    _, _, err = program(text).ended(9)
    assert "cannot schedule new futures after interpreter shutdown" in err
    assert "flashpool:" not in err.replace("flashpool: cannot", "")


def test_a_pool_of_a_forked_child_ends_with_its_interrupt(program):
    text = """
if os.fork() == 0:
    with Pool(1) as p: p.submit(here).result()
else:
    os.wait()
"""
    status, _, err = program(text).until_running().interrupt().ended()
    assert status == -signal.SIGINT
    assert re.search(ONE_WAS_ENDED, err), err


#: Like a notebook's kernel: run cells in the main thread, catch every exception, continue.
SHELL = """
import code, io
shell = code.InteractiveConsole({**globals()})
sys.ps1 = "In: "

def cell(text):
    shell.runcode(compile(text, "<cell>", "exec"))
    print("ran", flush=True)

cell("pool = Pool(2)")
"""


@pytest.mark.parametrize(
    "wait",
    [
        "pool.submit(here).result()",
        "list(pool.map(here, [600]))",
        "concurrent.futures.wait([pool.submit(here)])",
        "for one in concurrent.futures.as_completed([pool.submit(here)]): pass",
        "for item in pool.submit(items).result(): pass",
        "one = pool.instance(type('Sleeper', (), {'nap': lambda self: here()}))\none.nap().result()",
    ],
)
def test_an_interrupt_in_a_notebook_ends_the_cells_calls(program, wait):
    text = f"""
cell("other = pool.submit(time.sleep, 1)")
cell({wait!r})
cell("while pool.stats().slots.busy > 1: time.sleep(0.01)")
cell("print(other.cancelled(), other.result(), pool.submit(abs, -7).result())")
"""
    one = program(SHELL + text).until_running()
    status, out, err = one.interrupt().ended(within=9)
    assert "False None 7" in out, err
    assert out.count("ran") == 5
    assert status == 0
    assert re.search(rf"flashpool: KeyboardInterrupt: {ONE_WAS_ENDED}\.", err), err
    assert err.count("flashpool:") == 1
