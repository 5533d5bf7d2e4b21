"""`function_unpickling` loads cloudpickle's pickles, usually without importing cloudpickle."""

import base64
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import cloudpickle
import pytest

from support.lean import CHILD

LEAN = """
import base64, json, sys
from pathlib import Path
package = type(sys)("_flashpool")
package.__path__ = [{child!r}]
sys.modules["_flashpool"] = package
from _flashpool.serialization import function_unpickling
sys.path.append({packages!r})
found = []
for text in json.load(sys.stdin):
    function = function_unpickling.load(memoryview(base64.b64decode(text)))
    found.append([repr(function()), "cloudpickle" in sys.modules])
print(json.dumps(found))
"""

#: Sources that each define a function ``f`` without arguments.
WITHOUT_CLOUDPICKLE = {
    "plain": "def f(): return 1",
    "lambda": "f = lambda: 2",
    "defaults": "def f(a=1, *, b=[2]): return a, b",
    "doc and annotations": "def f(a: int = 3) -> str:\n 'said'\n return f.__doc__, f.__annotations__",
    "attributes": "def f(): return f.seen\nf.seen = {'twice': 2}",
    "names": "def f(): return f.__name__, f.__qualname__, f.__module__",
    "closure": "def outer(x):\n def inner(): return x * 2\n return inner\nf = outer(21)",
    "closure over itself": (
        "def outer():\n def down(n=3): return [n, *down(n - 1)] if n else []\n return down\n"
        "f = outer()"
    ),
    "cell that is empty": (
        "def outer():\n"
        " def inner():\n  try: return late\n  except NameError as error: return str(error)\n"
        " if 0: late = 1\n"
        " return inner\n"
        "f = outer()"
    ),
    "cell of None": "def outer(x):\n return lambda: x is None\nf = outer(None)",
    "globals": "N = 5\ndef g(n): return N * n\ndef f(): return g(2)",
    "globals that functions share": (
        "N = 0\ndef up():\n global N\n N += 1\ndef f():\n up()\n up()\n return N"
    ),
    "each other": "def f(n=3): return g(n)\ndef g(n): return f(n - 1) + 1 if n else 0",
    "module": "import math\ndef f(): return math.floor(2.5)",
    "submodule": "import xml.dom.minidom\ndef f(): return xml.dom.minidom.parseString('<a/>').nodeName",
    "builtins": "def f(): return __builtins__['len']('four'), max(1, 2)",
    "generator": "def f(): return list(g())\ndef g(): yield from (1, 2)",
    "exceptions": "def f():\n try: 1 / 0\n except ZeroDivisionError as error: return str(error)",
    "function in a function": "def f():\n def g(x): return x + 1\n return g(1)",
    "partial": "import functools\ndef g(a, b): return a + b\nf = functools.partial(g, 1, b=2)",
}
WITH_CLOUDPICKLE = {
    "class": "class C:\n def m(self): return 7\ndef f(): return C().m()",
    "bound method": "class C:\n def m(self): return 8\nf = C().m",
}


def defined(source):
    namespace = {"__name__": "__main__"}
    exec(source, namespace)
    return namespace["f"]


def loaded_lean(functions):
    """For each function, return its result and whether loading it imported cloudpickle."""
    packages = str(Path(cloudpickle.__file__).parents[1])
    order = [base64.b64encode(cloudpickle.dumps(one)).decode() for one in functions]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", LEAN.format(child=str(CHILD), packages=packages)],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", WITHOUT_CLOUDPICKLE)
def test_a_function_is_as_cloudpickle_loads_it(name):
    function = defined(WITHOUT_CLOUDPICKLE[name])
    expected = repr(cloudpickle.loads(cloudpickle.dumps(function))())
    assert loaded_lean([function]) == [[expected, False]]


@pytest.mark.parametrize("name", WITH_CLOUDPICKLE)
def test_values_other_than_functions_import_cloudpickle(name):
    function = defined(WITH_CLOUDPICKLE[name])
    assert loaded_lean([function]) == [[repr(function()), True]]


def test_functions_are_the_same_whether_cloudpickle_is_imported_or_not():
    kinds = [WITHOUT_CLOUDPICKLE["closure"], WITH_CLOUDPICKLE["class"]]
    functions = [defined(kinds[n]) for n in (0, 1, 0)]
    assert loaded_lean(functions) == [["42", False], ["7", True], ["42", True]]


def test_a_function_of_a_module_travels_by_reference():
    assert loaded_lean([partial(len, "abc")]) == [["3", False]]
