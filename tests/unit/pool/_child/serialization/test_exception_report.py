"""Reports of exceptions: faithful where possible, bounded and safe otherwise."""

import json
import pickle
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashpool.pool._child.serialization import exception_pickling, exception_report, user_frames

needs_groups = pytest.mark.skipif(sys.version_info < (3, 11), reason="groups are of 3.11")


def captured(exc):
    record, data = exception_pickling.capture(exc)
    json.dumps(record)
    assert record["error"].encode()
    return record, data


def raised(function):
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("it did not raise")


CHAIN = """
def g(): return {}['key']
def f():
    try:
        g()
    except KeyError as error:
        raise ValueError('boom', 2) from error
"""


def test_the_text_reads_as_python_prints_it(worker):
    answer = worker(CHAIN)
    text = "\n".join(line for line in answer.error.splitlines() if set(line) - set(" ^~"))
    assert text == (
        "ValueError: ('boom', 2)\n"
        "Traceback (most recent call last):\n"
        '  File "flash:f", line 5, in f\n'
        "    g()\n"
        '  File "flash:f", line 2, in g\n'
        "    def g(): return {}['key']\n"
        "KeyError: 'key'\n"
        "The above exception was the direct cause of the following exception:\n"
        "Traceback (most recent call last):\n"
        '  File "flash:f", line 7, in f\n'
        "    raise ValueError('boom', 2) from error\n"
        "ValueError: ('boom', 2)"
    )


def test_the_details_have_the_same_content_as_data(worker):
    details = worker(CHAIN).details
    assert details["class_name"] == "ValueError"
    assert details["module"] == "builtins"
    assert details["message"] == details["args_repr"] == "('boom', 2)"
    assert details["traceback"] == [["flash:f", 7, "f", "raise ValueError('boom', 2) from error"]]
    assert details["cause"]["class_name"] == "KeyError"
    assert details["context"] is None
    assert details["pickle"] == {
        "tblib": "3.2.2",
        "python": ".".join(map(str, sys.version_info[:2])),
    }


def test_the_pickle_is_the_exception(worker):
    answer = worker(CHAIN)
    error = pickle.loads(answer.pickle)
    assert (type(error), error.args, str(error)) == (ValueError, ("boom", 2), "('boom', 2)")
    assert type(error.__cause__) is KeyError
    assert error.__suppress_context__
    frames = []
    traceback = error.__traceback__
    while traceback:
        frames.append((traceback.tb_frame.f_code.co_filename, traceback.tb_lineno))
        traceback = traceback.tb_next
    assert frames == [("flash:f", 7)]
    assert user_frames.depth_of(error.__cause__.__traceback__) == 2


def test_a_builtin_exception_needs_no_cloudpickle(worker):
    assert "cloudpickle" not in worker(CHAIN).modules


def test_contexts_are_reported_unless_suppressed():
    def implicit():
        try:
            1 / 0
        except ZeroDivisionError:
            raise ValueError("v")

    def suppressed():
        try:
            1 / 0
        except ZeroDivisionError:
            raise ValueError("v") from None

    record, data = captured(raised(implicit))
    assert exception_report.CONTEXT_LINE in record["error"]
    assert type(pickle.loads(data).__context__) is ZeroDivisionError
    record, data = captured(raised(suppressed))
    assert "ZeroDivisionError" not in record["error"]
    assert pickle.loads(data).__suppress_context__


def test_notes_are_reported():
    error = ValueError("v")
    error.__notes__ = ["one", "two\nlines", 3]
    record, data = captured(error)
    assert record["error"].endswith("ValueError: v\none\ntwo\nlines\n")
    assert record["details"]["notes"] == ["one", "two\nlines"]
    assert pickle.loads(data).__notes__ == ["one", "two\nlines", 3]


@needs_groups
def test_exception_groups_are_reported(worker):
    answer = worker(
        "def g(): raise TypeError('t')\n"
        "def f():\n"
        "    try: g()\n"
        "    except TypeError as e: raise ExceptionGroup('all', [ValueError(1), ExceptionGroup('in', [e])])\n"
    )
    assert answer.error.startswith("ExceptionGroup: all (2 sub-exceptions)\n")
    assert (
        "  +---------------- 2 ----------------\n  | ExceptionGroup: in (1 sub-exception)\n"
        in answer.error
    )
    assert "  |   | TypeError: t" in answer.error
    inner = answer.details["exceptions"][1]["exceptions"][0]
    assert (inner["class_name"], inner["traceback"][-1][2]) == ("TypeError", "g")
    group = pickle.loads(answer.pickle)
    assert user_frames.depth_of(group.exceptions[1].exceptions[0].__traceback__) == 2
    assert group.exceptions[1].exceptions[0] is group.__context__


@pytest.mark.parametrize(
    ("code", "message", "exit_code"),
    [
        ("3", "3", 3),
        ("", "0", 0),
        ("'bye'", "bye", 1),
        ("None", "None", 0),
        ("-1", "-1", 255),
        ("True", "True", 1),
    ],
)
def test_exits_are_reported(worker, code, message, exit_code):
    answer = worker(f"import sys\ndef f(): sys.exit({code})")
    assert answer.error_type == "SystemExit"
    assert answer.error.startswith(f"SystemExit: {message}\n") or code == "None"
    assert answer.details["exit_code"] == exit_code
    assert isinstance(pickle.loads(answer.pickle), SystemExit)


# -- Awkward objects ----------------------------------------------------------------------

AWKWARD_TRAVELLING = {
    "constructor arguments": "class E(Exception):\n    def __init__(self, code, *, why): super().__init__(f'{code}: {why}'); self.code = code\ndef f(): raise E(3, why='x')",
    "constructor arguments, nothing passed on": "class E(Exception):\n    def __init__(self, code): self.code = code\ndef f(): raise E(3)",
    "local class": "def f():\n    class E(ValueError):\n        code = 3\n    raise E('x')",
    "slots": "class E(Exception):\n    __slots__ = ()\n    code = 3\ndef f(): raise E('x')",
    "own reduce": "class E(Exception):\n    def __init__(self, a, b): self.code = a; super().__init__(a, b)\n    def __reduce__(self): return E, (self.code, 1)\ndef f(): raise E(3, 1)",
    "dataclass": "import dataclasses\n@dataclasses.dataclass\nclass E(Exception):\n    code: int\ndef f(): raise E(3)",
    "own oserror": "class E(OSError):\n    code = 3\ndef f(): raise E(2, 'no', 'file')",
    "cause cycle": "class E(Exception):\n    code = 3\ndef f():\n    a, b = E('a'), E('b')\n    a.__cause__ = b; b.__cause__ = a\n    raise a",
    "context of itself": "class E(Exception):\n    code = 3\ndef f():\n    a, b, c = E('a'), E('b'), E('c')\n    a.__context__ = b; b.__context__ = c; c.__cause__ = b; c.__context__ = a\n    raise a",
    "attribute of itself": "class E(Exception):\n    code = 3\ndef f():\n    e = E('a'); e.me = e; e.others = [ValueError(1)]\n    raise e",
    "property over the cause": "class E(Exception):\n    code = 3\n    @property\n    def exceptions(self): raise ValueError\ndef f(): raise E('a')",
    "object without repr of its own": "class T: pass\nclass E(Exception):\n    code = 3\ndef f(): raise E(T())",
    "str that raises": "class E(Exception):\n    code = 3\n    def __str__(self): raise RuntimeError\ndef f(): raise E('a')",
    "str that exits": "class E(Exception):\n    code = 3\n    def __str__(self): raise SystemExit\ndef f(): raise E('a')",
    "str that is none": "class E(Exception):\n    code = 3\n    def __str__(self): return None\ndef f(): raise E('a')",
    "str of a subclass": "class S(str):\n    def __len__(self): raise ValueError\n    def encode(self, *a): raise ValueError\nclass E(Exception):\n    code = 3\n    def __str__(self): return S('x')\ndef f(): raise E()",
    "setattr that raises": "class E(Exception):\n    code = 3\n    def __getattr__(self, name): raise ValueError(name)\n    __notes__ = ()\ndef f(): raise E('a')",
    "long chain": "class E(Exception):\n    code = 3\ndef f():\n    e = E(0)\n    for i in range(5000):\n        n = E(i); n.__cause__ = e; e = n\n    raise e",
    "deep traceback": "class E(Exception):\n    code = 3\ndef g(n):\n    if n: g(n - 1)\n    raise E('bottom')\ndef f(): g(800)",
    "endless recursion": "class E(RecursionError):\n    code = 3\ndef g(): g()\ndef f():\n    try: g()\n    except RecursionError as e: raise E().with_traceback(e.__traceback__)",
    "tiny recursion limit": "import sys\nclass E(Exception):\n    code = 3\ndef f():\n    sys.setrecursionlimit(60)\n    raise E('x')",
    "surrogates": "class E(Exception):\n    code = 3\ndef f(): raise E('\\udc80 \\0')",
}
if sys.version_info >= (3, 11):
    AWKWARD_TRAVELLING |= {
        "group and its member's context": "class E(ExceptionGroup):\n    code = 3\ndef f():\n    e = ValueError(1)\n    g = E('g', [e])\n    e.__context__ = g\n    raise g",
        "member whose context is its group": "class E(Exception):\n    code = 3\ndef f():\n    e = E(1)\n    e.__context__ = ExceptionGroup('g', [e])\n    raise e",
        "many members": "class E(ExceptionGroup):\n    code = 3\ndef f(): raise E('g', [ValueError(i) for i in range(500)])",
        "nested groups": "class E(ExceptionGroup):\n    code = 3\ndef f():\n    e = ValueError(1)\n    for _ in range(60): e = E('g', [e])\n    raise e",
    }


@pytest.mark.parametrize("name", AWKWARD_TRAVELLING)
def test_awkward_exceptions_that_travel(worker, name):
    answer = worker(AWKWARD_TRAVELLING[name])
    assert answer.error_type == "E", answer.error
    assert answer.details["pickle"].get("absent") is None
    assert len(answer.error) < 300_000
    error = pickle.loads(answer.pickle)
    assert type(error).__name__ == "E"
    assert error.code == 3
    assert error.__traceback__ is not None


AWKWARD_TOLD = {
    "lock as attribute": "import threading\nclass E(Exception): pass\ndef f():\n    e = E('msg')\n    e.lock = threading.Lock()\n    raise e",
    "generator as argument": "class E(Exception):\n    def __str__(self): return 'msg'\ndef f(): raise E(x for x in ())",
    "reduce that raises": "class E(Exception):\n    def __reduce__(self): raise KeyError\ndef f(): raise E('msg')",
    "reduce that exits": "class E(Exception):\n    def __reduce__(self): raise SystemExit\ndef f(): raise E('msg')",
    "reduce to another class": "class E(Exception):\n    def __reduce__(self): return ValueError, ('msg',)\ndef f(): raise E('msg')",
    "reduce to a word": "class E(Exception):\n    def __reduce__(self): return 'word'\ndef f(): raise E('msg')",
    "frozen dataclass": "import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass E(Exception):\n    x: str\n    def __str__(self): return 'msg'\ndef f(): raise E('msg')",
    "new with arguments": "class E(Exception):\n    def __new__(cls, a, b): return super().__new__(cls, 'msg')\n    def __init__(self, a, b): super().__init__('msg')\ndef f(): raise E(1, 2)",
    "message of 100 MB": "class E(Exception): pass\ndef f(): raise E('msg' + 'x' * 100_000_000)",
    "arguments in a circle": "class E(Exception):\n    def __str__(self): return 'msg'\ndef f():\n    e = E(); e.args = (e,)\n    raise e",
    "repr that raises": "import threading\nclass R:\n    def __init__(self): self.x = threading.Lock()\n    def __repr__(self): raise ValueError\nclass E(Exception):\n    def __str__(self): return 'msg'\ndef f(): raise E(R())",
    "pickle of 20 MB": "class E(Exception): pass\ndef f():\n    e = E('msg'); e.data = b'x' * 20_000_000\n    raise e",
    "changes on its way": "import os\nclass E(Exception):\n    def __init__(self, *a): super().__init__('msg', os.urandom(4).hex())\n    def __reduce__(self): return E, ()\ndef f(): raise E()",
}


@pytest.mark.parametrize("name", AWKWARD_TOLD)
def test_awkward_exceptions_that_are_only_described(worker, name):
    answer = worker(AWKWARD_TOLD[name])
    assert answer.error_type == "E", answer.error
    assert answer.pickle == ""
    assert answer.details["pickle"]["absent"]
    assert "msg" in answer.details["message"]
    assert answer.details["traceback"][-1][2] == "f"
    assert len(json.dumps(vars(answer))) < 100_000


@pytest.mark.parametrize(
    "code",
    [
        "class M(type):\n    @property\n    def __module__(cls): raise ValueError\nclass E(Exception, metaclass=M): pass\ndef f(): raise E",
        "class M(type):\n    __name__ = __mro__ = property(lambda c: 1 / 0)\nclass E(Exception, metaclass=M): pass\ndef f(): raise E",
        "class E(Exception):\n    def __getattribute__(self, name): raise SystemExit\ndef f(): raise E",
        "class E(Exception):\n    __class__ = property(lambda s: 1 / 0)\ndef f(): raise E",
        "class E(Exception):\n    __module__ = 3\ndef f(): raise E",
        "class E(SyntaxError): pass\ndef f():\n    e = E('x'); e.lineno = e.text = object()\n    raise e",
        "import traceback\nclass E(Exception): pass\ndef f():\n    traceback.extract_tb = None\n    raise E",
        "import builtins\nclass E(Exception): pass\ndef f():\n    builtins.len = builtins.sum = None\n    raise E",
        "import sys\nclass E(Exception): pass\ndef f():\n    sys.modules['traceback'] = None\n    sys.modules['tblib'] = None\n    raise E",
        "class E(Exception): pass\ndef f():\n    e = E()\n    e.__traceback__ = None\n    e.__notes__ = 5\n    raise e",
        "import sys\nclass E(Exception): pass\ndef f():\n    sys.path[:] = []; sys.meta_path[:] = []\n    raise E",
    ],
)
def test_an_exception_is_reported_in_hostile_surroundings(worker, code):
    answer = worker(code)
    assert answer.kind == "raised"
    assert "E" in answer.error
    assert answer.error_type == "E"


def test_an_exception_of_a_shipped_module_travels_by_name(worker):
    answer = worker(
        "import errs\ndef f(): raise errs.Mine('x')",
        modules={"errs.py": "class Mine(Exception): pass"},
    )
    assert answer.error.startswith("errs.Mine: x\n")
    assert b"errs" in answer.pickle
    with pytest.raises(ModuleNotFoundError):
        pickle.loads(answer.pickle)


class Lies(ModuleNotFoundError):
    @property
    def name(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "missing"),
    [
        (raised(lambda: __import__("no_such_module.part")), "no_such_module"),
        (raised(lambda: __import__("json.no_such_part")), None),
        (raised(lambda: exec("from json import no_such_name")), None),
        (ModuleNotFoundError("No module named 'x'"), None),
        (ModuleNotFoundError("not built in", name="no way"), None),
        (ModuleNotFoundError("not built in", name="x" * 5000), None),
        (ModuleNotFoundError("not built in", name="xml.etree"), None),
        (Lies("x"), None),
        (ValueError("x"), None),
    ],
)
def test_a_missing_module_is_named_in_the_details(error, missing):
    record, data = captured(error)
    assert record["details"].get("missing_module") == missing
    if type(error) is ModuleNotFoundError:
        copy = pickle.loads(data)
        assert (str(copy), copy.name, copy.args) == (str(error), error.name, error.args)
        assert not hasattr(copy, "__notes__")


def test_capture_does_not_touch_the_exception():
    error = raised(lambda: 1 / 0)
    before = (error.__traceback__, error.__context__, error.__dict__.copy())
    captured(error)
    assert (error.__traceback__, error.__context__, error.__dict__) == before


def test_capturing_leaves_the_global_dispatch_table_unchanged():
    import copyreg

    before = dict(copyreg.dispatch_table)
    captured(ValueError(1))
    assert copyreg.dispatch_table == before


def test_unloadable_pickles_say_why(worker):
    answer = worker(AWKWARD_TOLD["frozen dataclass"])
    assert "FrozenInstanceError" in answer.details["pickle"]["absent"]
    answer = worker(AWKWARD_TOLD["message of 100 MB"])
    assert "larger than 16777216 bytes" in answer.details["pickle"]["absent"]


ERRORS = st.builds(
    lambda kind, args, notes: (kind, args, notes),
    st.sampled_from(
        [
            ValueError,
            KeyError,
            OSError,
            RuntimeError,
            BaseException,
            SystemExit,
            StopIteration,
            UnicodeError,
        ]
    ),
    st.lists(st.text() | st.integers() | st.none() | st.binary() | st.lists(st.text()), max_size=5),
    st.lists(st.text(), max_size=3),
)


@given(
    st.lists(ERRORS, min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()), max_size=12),
)
@settings(max_examples=60, deadline=None)
def test_any_graph_of_exceptions_is_captured(kinds, edges):
    errors = []
    for kind, args, notes in kinds:
        error = raised(lambda kind=kind, args=args: throw(kind(*args)))
        error.__notes__ = notes
        errors.append(error)
    for a, b, as_cause in edges:
        setattr(
            errors[a % len(errors)],
            "__cause__" if as_cause else "__context__",
            errors[b % len(errors)],
        )
    record, data = captured(errors[0])
    assert record["error_type"] == type(errors[0]).__name__
    copy = pickle.loads(data)
    assert type(copy) is type(errors[0])
    assert copy.args == errors[0].args


def throw(error):
    raise error


def test_the_record_of_a_huge_graph_is_bounded(worker):
    code = f"""
class E(Exception): pass
def g(n, error):  # {"漢" * 2000}
    if n: g(n - 1, error)  # {"漢" * 2000}
    raise error
def f():
    last = None
    for i in range(100):
        error = E("漢" * 20_000, ["漢" * 5000] * 50)
        error.__notes__ = ["漢" * 5000] * 50
        error.__cause__ = last
        try: g(200, error)
        except E as e: last = e
    raise last
"""
    answer = worker(code)
    assert answer.error_type == "E"
    assert len(json.dumps(vars(answer) | {"pickle": None})) < 6_000_000
    assert "cause" in answer.details


def test_clip_keeps_both_ends():
    text = exception_report.clip("a" * 50 + "b" * 5000 + "c" * 50, 100)
    assert text == "a" * 50 + " [... 5000 characters left out ...] " + "c" * 50


def test_a_missing_part_of_a_namespace_is_named_in_full(tmp_path, monkeypatch):
    """Such as `google.protobuf`, where another package provides `google`."""
    (tmp_path / "spacious" / "one").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    record, _ = captured(raised(lambda: __import__("spacious.other.part")))
    assert record["details"]["missing_module"] == "spacious.other"
