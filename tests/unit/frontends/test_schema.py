import json
from typing import Any

import pytest

from flashpool.frontends import schema
from flashpool.pool.errors import InvalidRequest

SECRET = "sesame-1234"


def request(**fields: Any) -> bytes:
    fields = {"function_name": "f", "function_code": "def f(): pass", **fields}
    return json.dumps({k: v for k, v in fields.items() if v is not ...}).encode()


def refusal(body: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        schema.decode(body)
    return caught.value.message


def test_a_request_as_the_client_sends_it() -> None:
    body = request(
        dependencies=[],
        system_dependencies=[],
        accelerate_downloads=True,
        modules={},
        args=["gAVLAS4="],
        timeout_s=1.5,
        something_new={"a": [1]},
    )
    decoded, own, _ = schema.decode(body)
    assert own is body
    assert (decoded.function_name, decoded.timeout_s) == ("f", 1.5)
    assert bytes(decoded.args) == b'["gAVLAS4="]'


def test_the_platforms_wrapper_is_removed() -> None:
    inner = request(args=[])
    decoded, own, _ = schema.decode(b'{"id": "1", "input": ' + inner + b"}")
    assert own == inner
    assert decoded.function_name == "f"


def test_class_requests_are_decoded() -> None:
    body = json.dumps(
        {
            "execution_type": "class",
            "class_name": "A",
            "class_code": "class A: pass",
            "method_name": "run",
            "constructor_args": [],
            "create_new_instance": False,
        }
    ).encode()
    assert schema.decode(body)[0].class_name == "A"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"{} {}",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b'{"input": {}}',
        request() + b"x",
        b"PK\x03\x04",
    ],
)
def test_malformed_bodies_are_refused(body: bytes) -> None:
    refusal(body)


@pytest.mark.parametrize(
    "fields",
    [
        {"function_name": ...},
        {"function_name": None},
        {"function_name": ""},
        {"function_name": "a b"},
        {"function_name": "f" * 300},
        {"function_name": 7},
        {"function_code": ...},
        {"function_code": None},
        {"function_code": 7},
        {"function_code": "x = '\0'"},
        {"execution_type": "script"},
        {"execution_type": "class"},
        {"serialization_format": "pickle"},
        {"args": {}},
        {"kwargs": []},
        {"modules": "x"},
        {"constructor_args": 1},
        {"timeout_s": 0},
        {"timeout_s": -1},
        {"timeout_s": "1"},
        {"timeout_s": True},
        {"timeout_s": 1e30},
        {"memory_mb": 0},
        {"memory_mb": 15},
        {"max_concurrency": 0},
        {"max_concurrency": 1001},
        {"memory_mb": 1.5},
        {"memory_mb": 1 << 62},
        {"gpus": -1},
        {"isolation": "none"},
        {"env": {"A": 1}},
        {"env": {"": "x"}},
        {"env": {"A=B": "x"}},
        {"env": {"A": "x\0"}},
        {"env": {"A": "x" * 40000}},
        {"dependencies": "numpy"},
        {"dependencies": [1]},
        {"dependencies": ["x"] * 1001},
    ],
    ids=str,
)
def test_fields_of_wrong_types_or_values_are_refused(fields: dict[str, Any]) -> None:
    refusal(request(**fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"function_name": 7}, "function_name: expected a string or null, got a whole number"),
        ({"env": {"A": 1}}, "env: one of its values: expected a string, got a whole number"),
        ({"dependencies": [True]}, "dependencies[0]: expected a string, got true or false"),
        ({"timeout_s": "1"}, "timeout_s: expected a number or null, got a string"),
    ],
    ids=str,
)
def test_messages_name_field_expectation_and_value(fields: dict[str, Any], message: str) -> None:
    assert refusal(request(**fields)) == message


def test_messages_explain_problems_of_the_body() -> None:
    assert "The request body is empty" in refusal(b"")
    assert refusal(b"[]") == "The request body: expected an object, got a list"


def test_a_misspelt_field_is_always_warned_of_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(2):
        decoded = schema.decode(request(agrs=[], something_else=1))
        assert decoded.warnings == ("The unknown field 'agrs' is ignored; did you mean args?",)
    assert [record.getMessage() for record in caplog.records] == [
        "A request has the unknown field 'agrs', which is ignored; did it mean args?"
    ]
    assert schema.decode(request(something_else=1)).warnings == ()
    assert schema.decode(request(args=[])).warnings == ()


def test_a_refusal_suggests_what_was_meant() -> None:
    body = request(function_name=..., functoin_name="f")
    assert refusal(body) == (
        "function_name is required. The unknown field 'functoin_name' is ignored; did you mean function_name?"
    )


@pytest.mark.parametrize(
    "text",
    [
        '"args": [NaN]',
        '"args": [-Infinity]',
        '"timeout_s": NaN',
        '"timeout_s": 1e999',
        '"function_code": "\\ud800"',
        '"args": ["\\udc00"]',
        '"modules": {"\\ud800": ""}',
        '"args": ["\x01"]',
        '"args": ' + "[" * 100_000 + "]" * 100_000,
        '"unheard_of": ' + "[" * 100_000 + "]" * 100_000,
    ],
    ids=lambda text: text[:40],
)
def test_invalid_json_values_are_refused(text: str) -> None:
    refusal(request()[:-1] + b", " + text.encode("utf-8", "surrogatepass") + b"}")


def test_invalid_utf8_is_refused_even_in_undecoded_fields() -> None:
    assert "UTF-8" in refusal(request()[:-1] + b', "args": ["\xff"]}')


def test_the_last_of_duplicate_keys_counts() -> None:
    decoded, _, _ = schema.decode(request()[:-1] + b', "timeout_s": 1, "timeout_s": 2}')
    assert decoded.timeout_s == 2


def test_an_escaped_backslash_is_not_a_nul() -> None:
    schema.decode(request(function_code="x = '\\u0000'"))


@pytest.mark.parametrize(
    "fields",
    [
        {"function_name": SECRET},
        {"execution_type": SECRET},
        {"serialization_format": SECRET},
        {"isolation": SECRET},
        {"timeout_s": SECRET},
        {"env": {SECRET: 1}},
        {"env": {SECRET + "=": "x"}},
        {"dependencies": SECRET},
        {"args": SECRET},
    ],
    ids=str,
)
def test_no_message_repeats_what_was_sent(fields: dict[str, Any]) -> None:
    assert SECRET not in refusal(request(**fields))
