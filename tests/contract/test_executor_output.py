"""Output of calls appears in the program: stdout on its stdout, stderr on its stderr."""

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest

from flashpool.pool import Pool

HEAD = """
import asyncio, logging, os, subprocess, sys, warnings
from flashpool.pool import Pool

def write():
    for number in range(3):
        print("out", number)
        print("err", number, file=sys.stderr)
    os.write(1, b"out 3\\n")
    os.write(2, b"err 3\\n")
    subprocess.run(["sh", "-c", "echo out 4; echo err 4 >&2"])
    logging.warning("err 5")

class Speaker:
    def __init__(self):
        print("out 0")
        print("err 0", file=sys.stderr)

    def plain(self):
        print("out 1")
        print("err 1", file=sys.stderr)

    async def overlapping(self, number):
        print(f"out {number}")
        sys.stderr.write("err ")
        await asyncio.sleep(0)
        print(f"out {number}")
        print(number, file=sys.stderr)

def talk(pool):
    with pool.instance(Speaker) as speaker:
        speaker.plain().result()
        speaker.overlapping(2).result()
        os.write(2, b"")
"""


def run(tmp_path, text, **options):
    path = tmp_path / "program.py"
    path.write_text(HEAD + text)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    done = subprocess.run(
        [sys.executable, str(path)], text=True, timeout=50, check=True, cwd=tmp_path, **options
    )
    return done.stdout, done.stderr


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize(
    "call", ["pool.submit(write).result()", "list(pool.map(lambda _: write(), [1]))"]
)
def test_each_stream_is_shown_on_its_own_in_order(tmp_path, method, call):
    out, err = run(tmp_path, f"with Pool(1, start_method={method!r}) as pool: {call}")
    assert out == "".join(f"out {number}\n" for number in range(5))
    assert err == "".join(f"err {number}\n" for number in range(5)) + "WARNING:root:err 5\n"


def test_output_of_instances_and_overlapping_calls_is_shown_too(tmp_path):
    out, err = run(tmp_path, "with Pool(1) as pool: talk(pool)")
    assert out == "out 0\nout 1\nout 2\nout 2\n"
    assert err == "err 0\nerr 1\nerr 2\n"


def test_the_future_has_the_output_of_both_streams(tmp_path):
    text = "with Pool(1) as pool:\n    future = pool.submit(write)\n    future.result()\n"
    text += "    print(sorted(future.output.split(b'\\n')))\n"
    text += "    print([one for one in future.output.split(b'\\n') if one.startswith(b'err')])"
    out, _ = run(tmp_path, text)
    both, errors = out.splitlines()[-2:]
    assert both.count("out") == 5
    assert errors == str([f"err {number}".encode() for number in range(5)])


def test_one_file_for_both_keeps_the_order_between_them(tmp_path):
    out, _ = run(
        tmp_path, "with Pool(1) as pool: pool.submit(write).result()", stderr=subprocess.STDOUT
    )
    pairs = [f"{stream} {number}\n" for number in range(5) for stream in ("out", "err")]
    assert out == "".join(pairs) + "WARNING:root:err 5\n"


def test_replaced_streams_get_the_output():
    # Like the streams of a notebook, which have a descriptor, too.
    class Shown(io.StringIO):
        def fileno(self):
            return 2

    def speak():
        print("out")
        print("err", file=sys.stderr)

    out, err = Shown(), Shown()
    with redirect_stdout(out), redirect_stderr(err), Pool(1) as pool:
        pool.submit(speak).result()
    assert (out.getvalue(), err.getvalue()) == ("out\n", "err\n")


def test_a_crash_shows_its_stacks_on_stderr(tmp_path):
    text = """
def crash():
    print("before", flush=True)
    os.abort()
with Pool(1) as pool:
    error = pool.submit(crash).exception()
print("before" in str(error), "Aborted" in str(error))
"""
    out, err = run(tmp_path, text)
    assert out == "before\nTrue True\n"
    assert "Fatal Python error: Aborted" in err


def write_three():
    print("a")
    print("b", file=sys.stderr)
    print("c")


def test_without_shown_output_there_is_no_second_pipe():
    with Pool(1, show_output=False) as pool:
        future = pool.submit(write_three)
        future.result()
        assert future.output == b"a\nb\nc\n"
