"""The checker of tests/support/leaks.py detects and names leaks, and nothing else."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing import shared_memory
from pathlib import Path

import pytest

from support import leaks

#: A child that forks twice, so that its grandchild is an orphan in a session of its own.
DOUBLE_FORK = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(1, b"%d" % os.getpid())
        os.close(1)
        time.sleep(60)
    os._exit(0)
os.wait()
"""


@pytest.fixture
def before():
    return leaks.Snapshot.take()


def only_leak(before):
    (leak,) = leaks.wait_for_leaks(before, grace_s=0.05)
    return leak


def test_nothing_left_is_no_leak(before):
    subprocess.run([sys.executable, "-c", ""], check=True)
    assert leaks.wait_for_leaks(before, grace_s=0.0) == []


def test_a_child_is_found(before):
    child = subprocess.Popen(["sleep", "60"])
    try:
        leak = only_leak(before)
        assert (leak.kind, leak.pid) == ("process", child.pid)
        assert "sleep 60" in str(leak)
    finally:
        child.kill()
        child.wait()


def test_a_double_forked_orphan_is_found_and_killed(before):
    output = subprocess.run(
        [sys.executable, "-I", "-S", "-c", DOUBLE_FORK], check=True, stdout=subprocess.PIPE
    ).stdout
    leak = only_leak(before)
    assert leak.pid == int(output)
    leaks.kill([leak])
    assert leaks.wait_for_leaks(before) == []


def test_a_process_that_exits_within_the_grace_is_no_leak(before):
    child = subprocess.Popen(["sleep", "0.5"])
    assert any(leak.pid == child.pid for leak in leaks.find_leaks(before))
    threading.Timer(0.1, child.wait).start()
    assert leaks.wait_for_leaks(before) == []


def test_children_of_an_older_child_are_no_leak():
    server = subprocess.Popen(["sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        before = leaks.Snapshot.take()
        server.stdin.write(b"sleep 60 & echo $!\n")
        server.stdin.flush()
        grandchild = int(server.stdout.readline())
        try:
            assert leaks.find_leaks(before) == []
            # Wait until the shell's child has called exec.
            deadline = time.monotonic() + 20
            while "sleep 60" not in leaks.descendants(os.getpid())[grandchild]:
                assert time.monotonic() < deadline
        finally:
            os.kill(grandchild, signal.SIGKILL)
    finally:
        server.communicate()


def test_a_descriptor_is_found(before):
    reading, writing = os.pipe()
    try:
        left = leaks.wait_for_leaks(before, grace_s=0.0)
        assert [leak.kind for leak in left] == ["descriptor"] * 2
        assert f"{reading} -> pipe:" in str(left[0])
    finally:
        os.close(reading)
        os.close(writing)


def test_a_reused_descriptor_number_is_found():
    number = os.open("/dev/null", os.O_RDONLY)
    before = leaks.Snapshot.take()
    other = os.open("/dev/zero", os.O_RDONLY)
    os.dup2(other, number)
    os.close(other)
    assert "/dev/zero" in only_leak(before).what
    os.close(number)


def test_a_thread_is_found(before):
    leave = threading.Event()
    thread = threading.Thread(target=leave.wait, name="lingering", daemon=True)
    thread.start()
    try:
        assert str(only_leak(before)) == "thread: lingering"
    finally:
        leave.set()
        thread.join()


def test_shared_memory_is_found(before):
    segment = shared_memory.SharedMemory(create=True, size=16)
    try:
        kinds = {leak.kind for leak in leaks.find_leaks(before)}
        assert "shm" in kinds
    finally:
        segment.close()
        segment.unlink()


#: Takes a snapshot, waits for a line, and prints the leaks of shared memory since.
WATCHER = """
from support import leaks
before = leaks.Snapshot.take()
print("before", flush=True)
input()
print([leak.what for leak in leaks.find_leaks(before) if leak.kind == "shm"])
"""


def test_shared_memory_of_another_program_is_no_leak():
    """The checker runs in a child here, so this process is another program."""
    with subprocess.Popen(
        [sys.executable, "-c", WATCHER],
        env={**os.environ, "PYTHONPATH": str(Path(leaks.__file__).parents[1])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as watcher:
        assert watcher.stdout.readline() == "before\n"
        segment = shared_memory.SharedMemory(create=True, size=16)
        # Like a named semaphore of the C library, which is mapped under its temporary name.
        linked = Path(f"/dev/shm/{segment.name}-linked")
        linked.hardlink_to(f"/dev/shm/{segment.name}")
        try:
            found, _ = watcher.communicate("\n", timeout=30)
        finally:
            linked.unlink()
            segment.close()
            segment.unlink()
        assert found == "[]\n"


def test_a_temporary_directory_is_found(before):
    with tempfile.TemporaryDirectory() as folder:
        assert only_leak(before).what == folder


def test_a_check_does_not_inspect_older_processes(before, monkeypatch):
    looked = []
    monkeypatch.setattr(leaks, "_stat", lambda pid: looked.append(pid) or [])
    leaks.find_leaks(before)
    assert before.pids.isdisjoint(looked)


def test_the_fixture_fails_a_test_that_leaks(tmp_path, request):
    (tmp_path / "test_leaks.py").write_text(
        "import subprocess, threading\n"
        "def test_leaks():\n"
        "    global child\n"
        "    child = subprocess.Popen(['sleep', '60'])\n"
        "def test_is_clean():\n"
        "    assert child.wait(10) == -9\n"
    )
    tests = request.config.rootpath / "tests"
    (tmp_path / "conftest.py").write_text(
        f"from support import leaks\nleaks.GRACE_S = 0.1\nexec(open({str(tests / 'conftest.py')!r}).read())\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tests)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "the test left behind" in run.stdout
    assert "sleep 60" in run.stdout
    assert "2 passed, 1 error" in run.stdout, run.stdout + run.stderr
