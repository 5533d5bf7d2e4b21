"""`by_value.pickler`: values that cloudpickle refuses or loses arrive in a foreign process."""

import base64
import io
import json
import subprocess
import sys
import threading
from pathlib import Path

import cloudpickle
import pytest

from flashpool.pool import cross_version, pickling
from flashpool.pool._child.serialization.by_value import pickler
from support import programs_by_value as programs

#: A program that reads pickles as clients do, with cloudpickle and the standard library.
READER = """
import base64, json, sys
sys.path.append({packages!r})
import pickle
told = {{}}
for name, text in json.load(sys.stdin).items():
    try:
        told[name] = repr(pickle.loads(base64.b64decode(text))())
    except BaseException as error:
        told[name] = f"{{type(error).__name__}}: {{error}}"
print(json.dumps(told))
"""
PROGRAMS = programs.CALLABLES | programs.TYPES | programs.CLASSES | programs.STATE


def defined(source):
    namespace = {"__name__": "__main__"}
    exec(compile(source, "/a/program.py", "exec"), namespace)
    return namespace["f"]


def read_elsewhere(pickles):
    packages = str(Path(cloudpickle.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", READER.format(packages=packages)],
        input=json.dumps({name: base64.b64encode(data).decode() for name, data in pickles.items()}),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def outcomes():
    """For each program, return what ``f`` returns as a copy elsewhere, and here."""
    functions = {name: defined(source) for name, source in PROGRAMS.items()}
    # Pickle all before any is called: a call may change the values that the function holds.
    elsewhere = read_elsewhere({name: pickling.dumps(f) for name, f in functions.items()})
    return {name: (elsewhere[name], repr(f())) for name, f in functions.items()}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_copy_does_what_the_function_does(outcomes, name):
    copied, here = outcomes[name]
    assert copied == here


@pytest.mark.parametrize("make", [threading.Lock, threading.RLock, threading.local])
def test_a_lock_among_arguments_is_refused_as_pickle_refuses_it(make):
    with pytest.raises(TypeError, match="cannot pickle"):
        pickling.dumps(((make(),), {}))


def test_a_lock_held_by_a_function_among_arguments_becomes_a_new_lock():
    function = defined(
        "import threading\nL = threading.Lock()\nL.acquire()\ndef f(): return L.locked()"
    )
    assert read_elsewhere({"f": pickling.dumps(function)}) == {"f": "False"}
    (arguments, _), *_ = (cloudpickle.loads(pickling.dumps(((function,), {}))),)
    assert arguments[0]() is False


def test_values_of_importable_modules_travel_by_name():
    function = defined("from logging import _lock as L\ndef f(): return L")
    copy = cloudpickle.loads(pickling.dumps(function))
    import logging

    assert copy() is logging._lock


def test_values_that_fail_by_value_travel_by_a_modules_name_for_them(tmp_path, monkeypatch):
    (tmp_path / "a_database.py").write_text(
        "import sqlite3\nclass Engine:\n"
        " def __init__(self): self.connection = sqlite3.connect(':memory:')\nENGINE = Engine()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    function = defined("from a_database import ENGINE\ndef f(): return ENGINE")
    copy = cloudpickle.loads(pickling.dumps(function))
    assert copy() is sys.modules["a_database"].ENGINE
    sys.modules.pop("a_database").ENGINE.connection.close()


def test_an_error_names_the_global_variable_that_cannot_travel():
    function = defined("import socket\nS = socket.socket()\ndef f(): return g()\ndef g(): return S")
    with pytest.raises(TypeError, match=r"g\(\) uses the global variable 'S', of type socket"):
        pickling.dumps(function)
    function().close()


# Sorted: `_OURS` is a set, and processes that share the tests have to agree on their order.
@pytest.mark.parametrize(
    "function", sorted(pickler._OURS, key=lambda one: one.__name__), ids=lambda one: one.__name__
)
def test_code_that_travels_along_works_in_another_python(function):
    assert cross_version.reduce_code(function.__code__, (3, 99))


@pytest.mark.parametrize("marked", [False, True])
def test_code_keeps_its_file_name(monkeypatch, marked):
    """Version 3.1.3 of cloudpickle writes another file name."""
    if marked:
        theirs = cloudpickle.Pickler.dispatch_table[type(defined.__code__)]

        def dynamic(code):
            make, arguments = theirs(code)
            return make, (*arguments[:10], "<dynamic-code>", *arguments[11:])

        monkeypatch.setitem(cloudpickle.Pickler._dispatch_table, type(defined.__code__), dynamic)
    file = io.BytesIO()
    pickler.Pickler(file).dump(defined("def f(): pass"))
    assert cloudpickle.loads(file.getvalue()).__code__.co_filename == "/a/program.py"
