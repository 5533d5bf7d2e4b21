"""`memory_layout`: objects that a call writes to are moved together, and work as before."""

import subprocess
import sys
import textwrap

import pytest

from flashpool.pool._child.fork_server import memory_tricks
from support.lean import CHILD

pytestmark = pytest.mark.skipif(
    not memory_tricks.usable([memory_tricks.LAYOUT]),
    reason="nothing is arranged on this interpreter",
)

PRELUDE = """
import gc, os, sys, traceback
sys.path.insert(0, {folder!r})
package = type(sys)("_flashpool")
package.__path__ = [{child!r}]
sys.modules["_flashpool"] = package
from _flashpool.fork_server import memory_layout
"""


def lean(source, folder="/"):
    """Run this in an interpreter of its own, because moving objects cannot be undone."""
    prelude = PRELUDE.format(folder=str(folder), child=str(CHILD))
    done = subprocess.run(
        # Compiling our modules for the first time would leave holes that later runs do not have.
        [sys.executable, "-I", "-B", "-c", prelude + textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_functions_that_run_are_recorded_without_side_effects_here():
    printed = lean("""
        there = []

        def inner():
            there.append(1)

        def outer():
            inner()
            inner()

        def idle():
            pass

        found = memory_layout.executed(outer)
        codes = [id(outer.__code__), id(inner.__code__)]
        assert [one for one in found if one in codes] == codes, found
        assert id(idle.__code__) not in found
        assert there == []
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            print("no process is left")
    """)
    assert printed == "no process is left\n"


def test_a_failed_trial_run_is_reported_and_moves_nothing():
    printed = lean("""
        sys.stdout.reconfigure(line_buffering=True)
        sys.stderr = sys.stdout
        def run():
            raise ValueError("not today")
        print(memory_layout.executed(run))
    """)
    assert "ValueError: not today" in printed
    assert printed.endswith("[]\n")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="code objects are all of one size")
def test_functions_that_run_are_moved_together_and_still_work(tmp_path):
    functions = "".join(
        # Functions of many sizes, and so in many of the allocator's pools.
        f"def f{n}(x):\n    if x > {n}:\n        return x {'+ 0 ' * n}+ {n}\n    raise ValueError(x)\n"
        for n in range(40)
    )
    (tmp_path / "scattered.py").write_text(functions)
    printed = lean(
        """
        import scattered

        functions = [getattr(scattered, f"f{n}") for n in range(40)]

        def run():
            for function in functions:
                function(100)

        def pages():
            codes = [one.__code__ for one in functions]
            return len({(id(c) + at) >> 12 for c in codes for at in (0, sys.getsizeof(c) - 1)})

        before, copies = pages(), memory_layout.arrange(run, [], gc.get_objects())
        assert len(copies) >= 40
        print(before, pages())
        assert [one(100) for one in functions] == [100 + n for n in range(40)]
        try:
            functions[3](2)
        except ValueError as error:
            line = traceback.extract_tb(error.__traceback__)[-1]
            assert (line.name, line.line) == ("f3", "raise ValueError(x)"), line
        else:
            raise AssertionError
        """,
        tmp_path,
    )
    before, after = map(int, printed.split())
    # Forty of at most 512 bytes: five pages, in pools of four.
    assert after <= 8 < before


def test_new_objects_of_one_size_are_adjacent():
    printed = lean("""
        scattered = [bytes(size) for _ in range(3000) for size in (30, 200, 400)]
        del scattered[::7]
        memory_layout.fill_holes()
        for size in (30, 200, 400, 3000):
            new = [bytes(size) for _ in range(8)]
            places = sorted(map(id, new))
            print(places[-1] - places[0] < 9 * (size + 64))
    """)
    assert printed == "True\n" * 4


def test_an_allocator_without_adjacent_objects_is_left_alone():
    """Such as another allocator that was preloaded."""
    printed = lean("""
        real, between = bytes, []

        def scattered(size):
            between.append(real(size))
            return real(size)

        memory_layout.bytes = scattered
        memory_layout._fill_heap()
        print(sum(map(len, between)) < 16 << 20)
    """)
    assert printed == "True\n"


def test_a_trial_run_that_hangs_is_given_up():
    printed = lean("""
        import time
        memory_layout._PATIENCE_S = 0.2
        print(memory_layout.executed(lambda: time.sleep(1000)))
    """)
    assert printed == "[]\n"


def test_a_failed_fork_finds_nothing_and_leaves_no_descriptor():
    printed = lean("""
        from _flashpool import forking

        def refused():
            raise BlockingIOError(11, "no more processes")

        forking.fork = refused
        before = os.listdir("/proc/self/fd")
        print(memory_layout.executed(list), os.listdir("/proc/self/fd") == before)
    """)
    assert printed == "[] True\n"
