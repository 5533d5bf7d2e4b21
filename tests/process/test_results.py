"""Results of requests: a client without the call's modules can read each, or gets an error."""

import base64
import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest

READER = """
import base64, sys
sys.path.append(sys.argv[1])
import pickle
print(repr(eval(sys.argv[2], {"r": pickle.loads(base64.b64decode(sys.stdin.read()))})))
"""

#: A source, what the reader does with the result, and the output of that.
READABLE = {
    "a cached function": (
        "import functools\n@functools.lru_cache(maxsize=3)\ndef g(x): return x + 1\ndef f(): return g",
        "r(1), r.cache_info().maxsize",
        "(2, 3)",
    ),
    "an instance of a class with cached methods": (
        (
            "import functools\nclass C:\n @functools.cached_property\n def p(self): return 5\n"
            " @functools.cache\n def m(self, x): return x * 2\ndef f(): return C()"
        ),
        "r.p, r.m(4)",
        "(5, 8)",
    ),
    "a member of an enum with attributes": (
        (
            "import enum\nclass E(enum.Enum):\n A = 1, 'x'\n def __init__(self, n, label): self.label = label\n"
            "def f(): return E.A"
        ),
        "r.label, r.name",
        "('x', 'A')",
    ),
    "a dispatcher": (
        (
            "import functools\n@functools.singledispatch\ndef d(x): return 'other'\n"
            "@d.register\ndef _(x: int): return 'number'\ndef f(): d(1); return d"
        ),
        "r(1), r('')",
        "('number', 'other')",
    ),
    "something of a module made by hand": (
        (
            "import sys, types\ndef f():\n m = types.ModuleType('by_hand'); sys.modules['by_hand'] = m\n"
            " exec('class C:\\n x = 3', m.__dict__)\n return m.C()"
        ),
        "r.x",
        "3",
    ),
    "something of a module loaded from a path": (
        (
            "import importlib.util, sys, tempfile\ndef f():\n"
            " path = tempfile.mkdtemp() + '/odd.py'\n open(path, 'w').write('class C:\\n x = 4')\n"
            " spec = importlib.util.spec_from_file_location('odd', path)\n"
            " m = sys.modules['odd'] = importlib.util.module_from_spec(spec)\n"
            " spec.loader.exec_module(m)\n return [m.C()]"
        ),
        "r[0].x",
        "4",
    ),
    "an object with weak references": (
        "import weakref\nclass N:\n parent = None\ndef f():\n a, b = N(), N()\n a.child = b; b.parent = weakref.ref(a)\n return a",
        "r.child.parent() is r",
        "True",
    ),
}
READABLE["a large array"] = (
    (
        "import pickle\nclass A(bytearray):\n"
        " def __reduce_ex__(self, _): return bytearray, (pickle.PickleBuffer(self),)\n"
        "def f(): return [A(b'x' * (20 << 20)), lambda: 5]"
    ),
    "(len(r[0]), set(r[0]), r[1]())",
    "(20971520, {120}, 5)",
)
#: A source, and the error message.
UNREADABLE = {
    "an exception that keeps less than it takes": (
        "class E(Exception):\n def __init__(self, a, b): super().__init__(a)\ndef f(): return E(1, 2)",
        "missing 1 required positional argument",
    ),
    "a state that is refused": (
        (
            "class C:\n def __setstate__(self, state): raise ValueError('not again')\n"
            "def f():\n c = C(); c.x = 1; return [c]"
        ),
        "ValueError: not again",
    ),
    "a constructor that leaves": (
        "import sys\nclass C:\n def __reduce__(self): return sys.exit, (3,)\ndef f(): return C()",
        "SystemExit: 3",
    ),
    "a large state that is refused": (
        (
            "class C:\n def __setstate__(self, state): raise ValueError('not again')\n"
            "def f():\n c = C(); c.x = 'x' * (3 << 20); return [c]"
        ),
        "ValueError: not again",
    ),
    "a state that is refused beside a large array": (
        (
            "import pickle\nclass A(bytearray):\n"
            " def __reduce_ex__(self, _): return bytearray, (pickle.PickleBuffer(self),)\n"
            "class C:\n def __setstate__(self, state): raise ValueError('not again')\n"
            "def f():\n c = C(); c.x = A(40 << 20); return [c]"
        ),
        "ValueError: not again",
    ),
    "a lock": ("import threading\ndef f(): return threading.Lock()", "cannot pickle"),
}


@pytest.mark.parametrize("name", READABLE)
def test_a_result_can_be_read_without_the_calls_modules(live, name):
    code, what, expected = READABLE[name]
    outcome = live.call(code)
    assert outcome.ok, outcome.error
    packages = str(Path(cloudpickle.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", READER, packages, what],
        input=outcome.body.decode(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == (expected, "")


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_result_that_nobody_could_read_is_an_error(live, name):
    code, words = UNREADABLE[name]
    outcome = live.call(code)
    assert (outcome.ok, outcome.error_type) == (False, "ResultNotSerializable")
    assert words in outcome.error
    assert base64.b64encode(b"") == outcome.body


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_functions_of_the_source_run_in_processes_of_the_call(live, method):
    code = f"""
import multiprocessing
class A:
    def __init__(self, n): self.n = n
def inc(a): return A(a.n + 1)
def f():
    with multiprocessing.get_context({method!r}).Pool(1) as workers:
        found = workers.map(inc, [A(1), A(2)])
    return [(type(a) is A, a.n) for a in found]
"""
    assert live.value(code) == [(True, 2), (True, 3)]
