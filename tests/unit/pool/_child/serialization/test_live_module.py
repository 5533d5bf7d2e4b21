"""A sent source as a module: its name, its file, and how values it defines travel."""

import os
import pickle
import subprocess
import sys

import pytest


def test_the_main_guard_does_not_run_and_main_is_another_module(worker):
    code = """
import sys
ran = False
if __name__ == "__main__":
    ran = True
def f():
    main = sys.modules["__main__"]
    return ran, __name__, f.__module__, sys.modules[__name__].f is f, hasattr(main, "f")
"""
    assert worker.value(code) == (False, "__flash_live__", "__flash_live__", True, False)


RETURNS = """
import dataclasses, enum
@dataclasses.dataclass
class Point:
    x: int
    def double(self): return Point(2 * self.x)
class Color(enum.Enum):
    RED = 1
class Odd(Exception):
    def __init__(self, number):
        super().__init__(number)
        self.number = number
    def __str__(self): return f"{self.number} is odd"
def f(what):
    if what == "raise":
        raise Odd(3)
    if what == "registry":
        import cloudpickle
        return __name__ in cloudpickle.list_registry_pickle_by_value()
    if what == "own":
        import cloudpickle
        return cloudpickle.dumps(Point(4))
    return Point(20), Color.RED, (lambda: Point(1))
"""

#: Loads a pickle in a process without the module.
READER = """
import pickle, sys
before = dict(sys.modules["__main__"].__dict__)
value = pickle.load(sys.stdin.buffer)
assert "__flash_live__" not in sys.modules
if isinstance(value, bytes):
    value = pickle.loads(value)
after = sys.modules["__main__"].__dict__
assert {name for name in after if name not in before} <= {"after", "before", "value"}
"""


def read_elsewhere(pickled: bytes, use: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"{READER}\n{use}"],
        input=pickled,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_results_and_exceptions_of_its_classes_load_where_there_is_no_such_module(worker):
    value = worker.value(RETURNS, "value")
    text = (
        "point, color, make = value; print(point.double(), color, make(), point == type(point)(20))"
    )
    assert read_elsewhere(cloudpickled(value), text).split("\n")[0].endswith("True")
    again = worker(RETURNS, "raise")
    assert read_elsewhere(again.pickle, "print(value, value.number, type(value).__name__)") == (
        "3 is odd 3 Odd\n"
    )
    assert again.error.startswith("Odd: 3 is odd")


def cloudpickled(value) -> bytes:
    import cloudpickle

    return cloudpickle.dumps(value)


def test_the_calls_own_cloudpickle_pickles_it_by_value_too(worker):
    assert worker.value(RETURNS, "registry") is True
    own = worker.value(RETURNS, "own")
    assert read_elsewhere(pickle.dumps(own), "print(value.double().x)") == "8\n"


SPAWN = """
import multiprocessing
class Scale:
    def __init__(self, by): self.by = by
    def __call__(self, x): return x * self.by
def square(x): return x * x
def f(method):
    try:
        with multiprocessing.get_context(method).Pool(1) as pool:
            squares = pool.map_async(square, [1, 2, 3]).get(timeout=20)
            return squares, pool.map_async(Scale(3), [1]).get(timeout=20)
    finally:
        multiprocessing.util._run_finalizers()  # as at the exit of Python
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_its_functions_can_be_used_in_child_processes(worker, method):
    assert worker.value(SPAWN, method) == ([1, 4, 9], [3])


def test_grandchild_processes_find_it_too(worker):
    code = (
        SPAWN.replace("def f(", "def deeper(_):\n    return f('spawn')\ndef f(")
        + "def g():\n    from concurrent.futures import ProcessPoolExecutor\n"
        + (
            "    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:\n"
            "        return list(pool.map(deeper, [0], timeout=20))\n"
        )
    )
    assert worker.value(code, function_name="g") == [([1, 4, 9], [3])]


def test_it_is_written_to_a_file_if_it_uses_its_file(worker):
    code = """
import inspect, os
def f():
    return __file__, os.path.isfile(__file__), open(__file__).read(), inspect.getsourcefile(f)
"""
    path, there, text, source_file = worker.value(code)
    assert there
    assert text == code
    assert path == source_file
    assert os.path.basename(path) == "__flash_live__.py"
    assert not os.path.exists(path), "it is gone with the call"
    assert not os.path.exists(os.path.dirname(os.path.dirname(path)))


def test_no_file_is_written_for_a_call_that_does_not_need_it(worker):
    code = """
def f():
    import sys, inspect
    lines = inspect.getsource(f)
    return sys.modules["_flashpool.call_files"].is_made(), len(lines) > 9
"""
    assert worker.value(code) == (False, True)


@pytest.mark.parametrize("text", ["é", "# -*- coding: latin-1 -*-\né", "# coding: ascii\né"])
def test_the_file_has_the_text_of_the_source(worker, text):
    lines = text.split("\n")
    code = "\n".join([*lines[:-1], f"WORD = {lines[-1]!r}", SPAWN, "def word(_): return WORD", ""])
    code += "def g():\n    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
    code += "        return pool.map_async(word, [0]).get(timeout=20)\n"
    assert worker.value(code, function_name="g") == ["é"]


def test_a_byte_order_mark_is_not_part_of_the_text(worker):
    assert worker.value("\ufeffdef f(): return 1") == 1
