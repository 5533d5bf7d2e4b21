"""Which surroundings that imports read a source changes, found by parsing the source."""

from __future__ import annotations

import pytest

from flashpool.pool.scheduling.touching import imports, touches


@pytest.mark.parametrize(
    "text",
    [
        'os.environ["A"] = "x"',
        "os.environ['A']='x'",
        'os.environ[ "A" ] += "x"',
        'os.environ["A"]: str = "x"',
        'os.environ["A"], b = "x", 2',
        'del os.environ["A"]',
        'os.environ.setdefault("A", "y")',
        'os.environ.pop("A", None)',
        'os.environ.__setitem__("A", "x")',
        'from os import environ\nenviron["A"] = "x"',
        'os.putenv("A", "b")',
        'os.unsetenv("A")',
    ],
)
def test_a_change_of_a_named_variable_is_found(text):
    assert touches(text) == {"env:A"}


@pytest.mark.parametrize(
    "text",
    [
        'os.environ.update(A="x")',
        'os.environ[name] = "x"',
        "os.environ |= other",
        "os.environ.clear()",
        "change(os.environ)",
        "e = os.environ",
        "e = os.environ\n",
        "from os import environ as e",
        "os.putenv(name, value)",
        "monkeypatch(os.environ, name)",
        "return os.environ",
    ],
)
def test_a_change_of_unknown_variables_is_found(text):
    assert touches(text) == {"env:*"}


@pytest.mark.parametrize(
    "text",
    [
        "return 1",
        'x = os.environ["A"]',
        'os.environ.get("A")',
        'os.getenv("A")',
        'if os.environ["A"] == "x":',
        'if "A" in os.environ:',
        '"A" not in os.environ and y',
        "for name in os.environ:",
        "for k, v in os.environ.items():",
        "dict(os.environ)",
        '{**os.environ, "A": 1}',
        "subprocess.run(x, env=os.environ)",
        "subprocess.run(x, env=os.environ.copy())",
        'f(os.environ["A"], b=2)',
        'return os.environ["A"]\n',
        "environ_of = 1",
        'warnings.simplefilter("ignore")',
        'sys.path.append("/lib")',
        "from os import environ\nprint(environ['A'])",
    ],
)
def test_reading_is_not_a_change(text):
    assert {what for what in touches(text) if not what.startswith("look:")} == set()


@pytest.mark.parametrize(
    "text",
    ['x = os.environ["A"]', 'os.environ.get("A")', 'os.getenv("A", "b")', "environ['A'] == 1"],
)
def test_a_variable_that_is_read_is_found(text):
    assert touches(text) == {"look:A"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('os.chdir("/x")', "cwd"),
        ("sys.argv[1:] = []", "argv"),
        ('locale.setlocale(locale.LC_ALL, "C")', "locale"),
        ('warnings.simplefilter("error")', "warnings"),
        ("random.seed(4)", "random"),
        ("torch.manual_seed(4)", "random"),
        ("sys.meta_path.insert(0, finder)", "package:*"),
        ('sys.path.insert(0, "x")', "package:*"),
        ('sys.path[:0] = ["x"]', "package:*"),
        ("from sys import path\npath.insert(0, x)", "package:*"),
        ('sys.modules["a"] = fake', "package:*"),
        ("from gevent import monkey; monkey.patch_all()", "package:*"),
        ("import eventlet", "package:*"),
    ],
)
def test_changes_of_other_surroundings_are_found(text, found):
    assert touches(text) == {found}


def test_imported_packages_are_found():
    text = """
import numpy as np, pandas
from a.b import c
def f():
    import torch.nn as nn; import x
    from y import (z,
        w)
    "import nothing"
"""
    assert imports(text) == {"numpy", "pandas", "a", "torch", "x", "y"}
