"""Requests in, results out: what is accepted, what is refused, and with which messages."""

import base64
import json
import pickle

import cloudpickle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashpool.pool._child.serialization import flash, pickling
from flashpool.pool._child.serialization.exception_pickling import Unserializable
from flashpool.pool._child.wire import BadRequest

ADD = "def f(a, b=2):\n    return a + b\n"
ECHO = "def f(x):\n    return x\n"


def test_a_call_with_positional_and_keyword_arguments(worker):
    b = base64.b64encode(cloudpickle.dumps(40)).decode()
    assert worker.value(ADD, 2, kwargs={"b": b}) == 42


@pytest.mark.parametrize("field", ["args", "kwargs", "modules", "dependencies", "instance_id"])
def test_null_is_the_same_as_absent(worker, field):
    request = {"function_name": "f", "function_code": "def f(): return 7", field: None}
    assert worker.body(json.dumps(request).encode()).ok


def test_wrapped_and_bare_bodies_are_the_same(worker):
    request = {"function_name": "f", "function_code": "def f(): return 7"}
    answers = [
        worker.body(json.dumps(r).encode()) for r in (request, {"input": request, "id": "x"})
    ]
    assert answers[0].result == answers[1].result


def test_none_comes_back_as_a_pickle(worker):
    assert worker("def f(): pass").result == "gAVOLg=="


def test_a_plain_call_imports_nothing(worker):
    assert worker(ADD, 1).modules == []


def test_json_arguments_and_results_round_trip(worker):
    answer = worker(
        "def f(x): return {'got': x, 't': (1, 2)}", {"a": [1.5, None]}, serialization_format="json"
    )
    assert json.loads(answer.result) == {"got": {"a": [1.5, None]}, "t": [1, 2]}


def test_arguments_may_be_of_classes_the_request_ships(worker):
    stream = b"\x80\x04\x8c\x05shape\x8c\x05Point\x93)\x81."
    answer = worker.body(
        json.dumps(
            {
                "function_name": "f",
                "function_code": "def f(p): return p.x",
                "modules": {"shape.py": "class Point:\n    x = 5\n"},
                "args": [base64.b64encode(stream).decode()],
            }
        ).encode()
    )
    assert pickle.loads(base64.b64decode(answer.result)) == 5


GOOD = {"function_name": "f", "function_code": "def f(*a, **k): pass"}
CLASS = {
    "execution_type": "class",
    "class_name": "C",
    "class_code": "class C:\n  def m(self): pass",
}
REFUSED = [
    (b"", "not JSON"),
    (b"\xff\xfe", "not JSON"),
    (b"[1]", "the body: expected an object, got a list"),
    (b'{"input": 3}', "input: expected an object, got a number"),
    (b'{"input": null}', "input: expected an object, got null"),
    (b'{"x": NaN}', "NaN"),
    (b'{"x": -Infinity}', "-Infinity"),
    (b'{"x": 1e999}', "too large"),
    (b"[" * 100_000, "too deep"),
    ({}, "function_name: expected a string, got nothing"),
    ({**GOOD, "function_name": 3}, "function_name: expected a string, got a number"),
    ({**GOOD, "function_name": ""}, "function_name: expected a string, got an empty string"),
    ({"function_name": "f"}, "function_code: expected a string, got nothing"),
    ({**GOOD, "function_code": None}, "function_code: expected a string, got null"),
    ({**GOOD, "function_code": "def f(): return '\0'"}, "function_code: has a NUL"),
    ({**GOOD, "function_code": "def f(): return '\ud800'"}, "function_code: has half a surrogate"),
    ({**GOOD, "function_name": "g"}, "defines no 'g'; it defines f"),
    ({**GOOD, "function_code": "f = 3"}, "'f' is a int, not a function"),
    ({**GOOD, "function_code": "x = 3"}, "it defines nothing that can be called"),
    ({**GOOD, "args": {}}, "args: expected a list, got an object"),
    ({**GOOD, "kwargs": []}, "kwargs: expected an object, got a list"),
    ({**GOOD, "args": [1]}, "args[0]: expected base64 of a pickle, got a number"),
    ({**GOOD, "args": ["gAVOLg==", "!!"]}, "args[1]: expected base64 of a pickle"),
    ({**GOOD, "args": ["gAVO Lg=="]}, "args[0]: expected base64 of a pickle"),
    ({**GOOD, "args": ["gAVOLg"]}, "args[0]: expected base64 of a pickle"),
    ({**GOOD, "args": ["é"]}, "args[0]: expected base64 of a pickle"),
    ({**GOOD, "args": ["plain text"]}, 'set "serialization_format": "json")'),
    ({**GOOD, "kwargs": {"k": 3}}, "kwargs['k']: expected base64 of a pickle, got a number (for"),
    ({**GOOD, "kwargs": {"k": "gAVO"}}, "kwargs['k']: cannot be unpickled"),
    ({**GOOD, "kwargs": {"k": ""}}, "kwargs['k']: cannot be unpickled: EOFError"),
    ({**GOOD, "args": ["Y25vX3N1Y2gKeAou"]}, "No module named 'no_such'; is it in 'dependencies'?"),
    ({**GOOD, "serialization_format": "xml"}, "serialization_format: expected 'cloudpickle' or"),
    ({**GOOD, "execution_type": "magic"}, "execution_type: expected 'function' or 'class'"),
    ({**GOOD, "modules": ["a.py"]}, "modules: expected an object, got a list"),
    ({**GOOD, "modules": {"a.py": 1}}, "modules['a.py']: expected a string, got a number"),
    ({**CLASS, "class_name": "D"}, "class_code defines no class 'D'; it defines C"),
    ({**CLASS, "method_name": "n"}, "C has no method 'n'; it has m"),
    ({**CLASS, "method_name": 1}, "method_name: expected a string"),
    ({**CLASS, "constructor_args": ["?"]}, "constructor_args[0]: expected base64"),
]


@pytest.mark.parametrize(("request_", "words"), REFUSED)
def test_a_malformed_request_is_refused_with_a_message(worker, request_, words):
    body = request_ if isinstance(request_, bytes) else json.dumps(request_).encode()
    answer = worker.body(body)
    assert (answer.ok, answer.kind) == (False, "BadRequest")
    assert words in answer.message


@settings(max_examples=40, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda s: st.lists(s) | st.dictionaries(st.text(), s),
    )
)
def test_arbitrary_json_never_crashes_the_checks(value):
    with pytest.raises(BadRequest):
        flash.load_call(json.dumps(value).encode())


@settings(max_examples=40, deadline=None)
@given(st.binary())
def test_arbitrary_bytes_never_crash_the_checks(body):
    with pytest.raises(BadRequest):
        flash.load_call(body)


def test_a_failing_pickle_is_the_requests_error_and_an_exiting_one_is_not(worker):
    class Raises:
        def __reduce__(self):
            return divmod, (1, 0)

    class Exits:
        def __reduce__(self):
            return exit, (3,)

    answer = worker(ECHO, Raises())
    assert "args[0]: cannot be unpickled: ZeroDivisionError" in answer.message
    request = {**GOOD, "args": [base64.b64encode(b"csys\nexit\n(I3\ntR.").decode()]}
    answer = worker.body(json.dumps(request).encode())
    assert (answer.kind, answer.error_type) == ("raised", "SystemExit")


# -- Classes ------------------------------------------------------------------------------

COUNTER = """
class Counter:
    def __init__(self, start, step=1):
        self.n, self.step = start, step
    def inc(self, times=1):
        self.n += times * self.step
        return self.n
    async def later(self):
        return self.n
    def __call__(self):
        return "called"
"""


def counter(worker, **fields):
    request = {
        "execution_type": "class",
        "class_name": "Counter",
        "class_code": COUNTER,
        "constructor_args": [base64.b64encode(pickle.dumps(10)).decode()],
        "create_new_instance": False,
        **fields,
    }
    answer = worker.body(json.dumps(request).encode())
    assert answer.ok, vars(answer)
    return pickle.loads(base64.b64decode(answer.result))


def test_a_class_is_built_and_its_method_called(worker):
    two = base64.b64encode(pickle.dumps(2)).decode()
    assert counter(worker, method_name="inc", args=[two]) == 12
    assert counter(worker, method_name="inc", constructor_kwargs={"step": two}) == 12
    assert counter(worker, method_name="later") == 10
    assert counter(worker) == "called"


def test_a_failing_constructor_is_the_users_error(worker):
    code = "class C:\n    def __init__(self): raise KeyError('no')\n    def m(self): pass"
    request = {"execution_type": "class", "class_name": "C", "class_code": code, "method_name": "m"}
    answer = worker.body(json.dumps(request).encode())
    assert (answer.kind, answer.error_type) == ("raised", "KeyError")


# -- Results ------------------------------------------------------------------------------

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda s: (
        st.lists(s) | st.tuples(s, s) | st.dictionaries(st.text(), s) | st.frozensets(st.integers())
    ),
)


@settings(max_examples=40, deadline=None)
@given(PLAIN)
def test_plain_values_round_trip(value):
    assert pickle.loads(base64.b64decode(flash.dump_result(value, False))) == value


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import datetime\ndef f(): return datetime.date(2020, 1, 2)", "datetime.date(2020, 1, 2)"),
        ("import pathlib\ndef f(): return [pathlib.PurePosixPath('a')]", "[PurePosixPath('a')]"),
        (
            "import decimal, functools\ndef f(): return functools.partial(pow, 2)",
            "functools.partial(<built-in function pow>, 2)",
        ),
        ("def f(): return {'s': {1}, 'b': bytearray(b'x')}", "{'s': {1}, 'b': bytearray(b'x')}"),
    ],
)
def test_importable_classes_travel_without_cloudpickle(worker, code, expected):
    answer = worker(code)
    assert repr(pickle.loads(base64.b64decode(answer.result))) == expected
    assert "cloudpickle" not in answer.modules


def test_classes_of_main_travel_by_value(worker):
    point = worker.value(
        "import dataclasses\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Point:\n"
        "    x: int\n"
        "    def double(self): return Point(self.x * 2)\n"
        "def f(): return [Point(2)]\n"
    )[0]
    assert (point.double().x, repr(point)) == (4, "Point(x=2)")
    assert worker.value("def f(): return (lambda n: lambda x: x + n)(3)")(4) == 7
    assert worker.value("def g(): return 5\ndef f(): return g")() == 5
    variable = worker.value("import typing\nT = typing.TypeVar('T')\ndef f(): return T")
    assert variable.__name__ == "T"


def test_an_instance_of_a_shipped_module_travels_by_name(worker):
    answer = worker(
        "from shape import Point\ndef f(): return Point()",
        modules={"shape.py": "class Point: pass"},
    )
    assert b"shape" in base64.b64decode(answer.result)
    assert "cloudpickle" not in answer.modules


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("__import__('threading').Lock()", "cannot be pickled: TypeError"),
        ("{'a': (x for x in ())}", "of type dict, cannot be pickled"),
        ("Bad(KeyError('no'))", "cannot be pickled: KeyError: 'no'"),
        ("Bad(SystemExit(3))", "cannot be pickled: SystemExit: 3"),
        (
            "Bad(Unspeakable())",
            "cannot be pickled: Unspeakable: <no message: ValueError in its __str__>",
        ),
        ("sys", "cannot be pickled"),
        ("deep(200_000)", "nested too deep to be pickled"),
        ("deep_objects(200_000)", "nested too deep to be pickled"),
        ("raised_limit(200_000)", "nested too deep to be pickled"),
    ],
)
def test_the_error_for_an_unpicklable_result_says_why(worker, expression, words):
    code = f"""
import sys
class Unspeakable(Exception):
    def __str__(self): raise ValueError
class Bad:
    def __init__(self, error): self.error = error
    def __reduce__(self): raise self.error
def deep(n):
    value = []
    for _ in range(n): value = [value]
    return value
class Link: pass
def deep_objects(n):
    value = None
    for _ in range(n):
        link = Link()
        link.next = value
        value = link
    return value
def raised_limit(n):
    sys.setrecursionlimit(10**8)
    return deep(n)
def f(): return {expression}
"""
    if expression == "sys":
        code = "import sys\ndef f(): return iter([1]).__next__, sys._getframe()"
    answer = worker(code)
    assert getattr(answer, "kind", vars(answer)) == "Unserializable"
    assert words in answer.message


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({1}, "of type set, cannot be written as JSON: TypeError: Object of type set"),
        ([b"x"], "Object of type bytes"),
        (float("nan"), "ValueError: Out of range float values"),
        ({"a": [float("inf")]}, "Out of range"),
        ({(1, 2): 3}, "keys must be str"),
    ],
)
def test_the_error_for_a_result_that_json_cannot_represent_says_why(value, words):
    with pytest.raises(Unserializable, match="Return dicts with string keys") as caught:
        flash.dump_result(value, True)
    assert words in str(caught.value)


def test_circular_and_deep_results_are_refused_as_json():
    circle: list = []
    circle.append(circle)
    with pytest.raises(Unserializable, match="Circular"):
        flash.dump_result(circle, True)
    deep: list = []
    for _ in range(200_000):
        deep = [deep]
    with pytest.raises(Unserializable, match="nested too deep to be written as JSON"):
        flash.dump_result(deep, True)


def test_json_results_are_ascii():
    assert flash.dump_result({"é": "ü"}, True) == b'{"\\u00e9":"\\u00fc"}'


def test_a_pickle_beyond_its_limit_is_not_finished():
    with pytest.raises(pickling.TooLarge):
        pickling.dump_with(b"x" * 1000, pickling.ByReference, lambda: pickling.ByReference, 100)


@pytest.mark.parametrize("space", [" ", "\n\t", "\r\n "])
def test_whitespace_around_a_request_is_accepted(space):
    body = f'{space}{{"function_name": "f", "function_code": "def f(): return 7"}}{space}'
    assert flash.load_call(body.encode()).function() == 7


def test_a_lone_surrogate_is_refused_in_json():
    with pytest.raises(Unserializable, match="surrogates"):
        flash.dump_result(["\ud800"], as_json=True)
    assert json.loads(flash.dump_result(["\U0001f600"], as_json=True)) == ["\U0001f600"]
