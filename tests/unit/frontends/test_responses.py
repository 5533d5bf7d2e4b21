import base64
import json
from dataclasses import replace
from typing import Any

import pytest

from flashpool.frontends import responses
from flashpool.pool.calls import Outcome, Receipt, unprovided
from flashpool.pool.errors import (
    BY_NAME,
    InstanceLost,
    Overloaded,
    PayloadTooLarge,
    Timeout,
)
from support.frontends.stand_in import NONE

#: What a drop-in replacement's answer must have (the client's FunctionResponse).
OLD_FIELDS = {
    "success",
    "result",
    "json_result",
    "error",
    "stdout",
    "instance_id",
    "instance_info",
}


def fields(answer: responses.Answer) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(answer.body)
    assert decoded.keys() >= OLD_FIELDS | {"receipt"}
    return decoded


def test_a_result_becomes_a_response() -> None:
    answer = responses.of_outcome(
        Outcome(body=NONE, output='a "b"\n\x00é'.encode(), receipt=Receipt(pid=3)), None
    )
    got = fields(answer)
    assert answer.status == 200
    assert (got["success"], got["result"], got["stdout"]) == (True, "gAVOLg==", 'a "b"\n\x00é')
    assert got["receipt"]["pid"] == 3


def test_a_json_result() -> None:
    got = fields(responses.of_outcome(Outcome(body=b'{"a":[0]}', format="json"), None))
    assert (got["result"], got["json_result"]) == (None, {"a": [0]})


def test_invalid_utf8_in_output_is_replaced() -> None:
    assert "�" in fields(responses.of_outcome(Outcome(body=NONE, output=b"\xff"), None))["stdout"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'gAVOLg==","success":false,"x":"', "pickle"),
        (b"gAVO\nLg==", "pickle"),
        (b"g\xff", "pickle"),
        (b"", "json"),
        (b"1,2", "json"),
        (b"NaN", "json"),
        (b'"\xff"', "json"),
    ],
)
def test_a_forged_result_never_becomes_the_response(body: bytes, kind: str) -> None:
    got = fields(responses.of_outcome(Outcome(body=body, format=kind), None))
    assert (got["success"], got["error_type"]) == (False, "WorkerCrashed")


def test_an_oversized_result_is_an_error() -> None:
    limit = len(NONE)
    assert fields(responses.of_outcome(Outcome(body=NONE), limit))["success"]
    got = fields(responses.of_outcome(Outcome(body=NONE * 2), limit))
    assert got["error_type"] == "ResultTooLarge"
    assert got["details"] == {"size": 2 * limit, "limit": limit}


def test_a_user_exception() -> None:
    answer = responses.of_outcome(
        Outcome(
            error_type="KeyError",
            error="'x'\n\nTraceback ...",
            exception=b"\x80\x05.",
            from_user=True,
            output=b"before",
        ),
        None,
    )
    got = fields(answer)
    assert answer.status == 200
    assert base64.b64decode(got["exception"]) == b"\x80\x05."
    assert (got["success"], got["stdout"], got["error_type"]) == (False, "before", "KeyError")


def test_an_exception_that_cannot_be_pickled_is_absent() -> None:
    got = fields(
        responses.of_outcome(Outcome(error_type="X", error="x", details={"args": ["1"]}), None)
    )
    assert "exception" not in got
    assert got["details"] == {"args": ["1"]}


def test_a_failure_always_has_an_error() -> None:
    assert fields(responses.of_outcome(Outcome(error_type="X", error=""), None))["error"]


EXPECTED_STATUS = {
    "InstanceConflict": 409,
    "InvalidRequest": 422,
    "Unauthorized": 401,
    "PayloadTooLarge": 413,
    "Overloaded": 503,
    "PoolClosed": 503,
}


@pytest.mark.parametrize("name", BY_NAME)
def test_each_error_type_has_its_status(name: str) -> None:
    expected = EXPECTED_STATUS.get(name, 200)
    assert responses.of_outcome(Outcome(error_type=name, error="x"), None).status == expected
    assert responses.of_error(BY_NAME[name]("x")).status == expected


def test_a_user_exception_of_such_a_name_is_still_a_result() -> None:
    outcome = Outcome(error_type="Overloaded", error="x", from_user=True)
    answer = responses.of_outcome(outcome, None)
    assert (answer.status, answer.retry_after) == (200, None)


def test_refusals_have_a_status_and_an_error() -> None:
    assert responses.of_error(Overloaded("full", retry_after_s=1.2)).retry_after == 2
    assert responses.of_error(Overloaded("full")).retry_after == 1
    assert responses.of_error(PayloadTooLarge("big")).retry_after is None
    assert responses.of_error(Timeout("late", phase="receive"), 408).status == 408


def test_a_refused_call_has_no_receipt() -> None:
    refused = responses.of_error(Overloaded("later", retry_after_s=1))
    assert (refused.status, json.loads(refused.body)["receipt"]) == (503, None)
    failed = responses.of_error(InstanceLost("it is not there"))
    receipt = json.loads(failed.body)["receipt"]
    assert (failed.status, receipt["environment"]) == (200, None)
    assert (receipt["environment_origin"], receipt["environment_hit"]) == (None, None)
    assert receipt["attempts"] == 0


@pytest.mark.parametrize(
    ("missing", "from_user", "told"),
    [("cv2", True, True), (None, True, False), (5, True, False), ("cv2", False, False)],
)
def test_a_missing_module_gets_advice(missing: object, from_user: bool, told: bool) -> None:
    error = "ModuleNotFoundError: No module named 'cv2'\n\nTraceback ...\n"
    outcome = Outcome(
        error_type="ModuleNotFoundError",
        error=error,
        details={"missing_module": missing},
        from_user=from_user,
    )
    text = fields(responses.of_outcome(outcome, None))["error"]
    assert text.startswith(error)
    assert text.endswith("in `dependencies`; a file of your own, in `modules`.") is told
    assert told or text == error


def test_a_failed_environment_has_a_receipt_with_its_times() -> None:
    outcome = Outcome(
        error_type="EnvironmentError",
        error="no such package",
        receipt=Receipt(provision=unprovided(0.5, "resolve")),
    )
    receipt = json.loads(responses.of_outcome(outcome, None).body)["receipt"]
    assert (receipt["environment"], receipt["environment_origin"]) == (None, "failed")
    assert receipt["environment_hit"] is False
    assert (receipt["seconds"]["resolve"], receipt["attempts"]) == (0.5, 0)


def test_warnings_are_there_when_there_are_any() -> None:
    for outcome in (Outcome(body=b"5", format="json"), Outcome(error_type="Timeout", error="x")):
        assert "warnings" not in json.loads(responses.of_outcome(outcome, None).body)
        warned = replace(outcome, warnings=('say "it"', "two"))
        body = json.loads(responses.of_outcome(warned, None).body)
        assert body["warnings"] == ['say "it"', "two"]
