import io
from typing import Any

import pytest
from rich.console import Console

from flashpool.frontends.cli.top import View


def call(number: int, seconds: float, **fields: Any) -> "dict[str, Any]":
    return {
        "id": f"a-{number}",
        "number": number,
        "label": "f",
        "instance": None,
        "state": "running",
        "outcome": None,
        "age_s": seconds,
        "pid": 7,
        "environment": "base",
        "request_id": "",
        **fields,
    }


def view() -> View:
    made = View()
    made.update({}, [call(1, 5.0), call(2, 9.0), call(3, 1.0), call(4, 2.0, state="ended")])
    return made


def shown(one: View) -> str:
    text = io.StringIO()
    Console(file=text, width=120).print(one.render(30, "http://here"))
    return text.getvalue()


def test_the_longest_call_is_first_and_selected() -> None:
    one = view()
    assert [row["id"] for row in one.rows()] == ["a-2", "a-1", "a-3"]
    assert one.chosen == "a-2"
    one.press("r")
    assert [row["id"] for row in one.rows()] == ["a-3", "a-1", "a-2"]
    one.press("s")
    assert one.sort == "pid"
    assert "a-4" not in shown(one)


def test_a_call_is_cancelled_only_after_confirmation() -> None:
    one = view()
    assert one.press("x") is None
    assert "Cancel a-2?" in shown(one)
    assert one.press("n") is None
    assert "Cancel" not in shown(one)
    one.press("\x1b[B")
    one.press("x")
    assert one.press("y") == "a-1"
    with pytest.raises(EOFError):
        one.press("q")


def test_the_confirmation_disappears_when_its_call_finishes() -> None:
    one = view()
    one.press("x")
    one.update({}, [call(1, 5.0)])
    assert (one.asked, one.chosen) == (None, "a-1")
    one.update({}, [])
    assert one.press("x") is None
    assert one.chosen is None
    one.press("k")


def test_escape_sequences_in_labels_are_neutralised() -> None:
    one = view()
    one.update({}, [call(1, 5.0, label="\x1b[2Jf")])
    assert "\x1b[2J" not in shown(one)
