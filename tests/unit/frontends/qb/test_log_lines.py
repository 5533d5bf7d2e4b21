"""A job's output in the log, line by line."""

import json
from collections.abc import Callable

import pytest

from flashpool.frontends.qb.log_lines import LINE_LIMIT, LiveLines

Show = Callable[..., list[str]]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Show:
    """Return the log messages of a job that writes these chunks."""

    def show(*chunks: bytes, limit: int = 10_000) -> list[str]:
        lines = LiveLines("job", limit)
        for chunk in chunks:
            lines.feed(chunk)
        lines.close()
        entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert {entry["requestId"] for entry in entries} <= {"job"}
        return [entry["message"] for entry in entries]

    return show


def test_lines_are_complete_whatever_the_chunks(shown: Show) -> None:
    assert shown(b"one\ntw", b"o\n\nthr", b"ee") == ["one", "two", "three"]
    assert shown("ä\r\n\u2028x\n".encode(), b"\xff\n") == ["ä", "\u2028x", "\ufffd"]


def test_length_and_number_of_lines_are_bounded(shown: Show) -> None:
    pieces = shown(b"x" * (2 * LINE_LIMIT + 5))
    assert [len(piece) for piece in pieces] == [LINE_LIMIT, LINE_LIMIT, 5]
    flood = shown(*[b"line\n"] * 100, limit=12)
    assert flood == ["line", "line", "li", "[its further output is not shown here]"]
