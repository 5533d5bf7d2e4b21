"""Untrusted text in an environment's facts is escaped before a terminal shows it."""

import json
from pathlib import Path

import pytest

from flashpool.envs.lease import Decision
from flashpool.frontends.cli import envs

HOSTILE = "[/red]\x1b[2J\udcff\r\0[link=x]"


def test_a_table_shows_any_text(capsys: pytest.CaptureFixture[str]) -> None:
    decision = Decision(name=HOSTILE, version="1", where="layer", why=HOSTILE)
    envs._print_decisions([decision])
    shown = capsys.readouterr().out
    assert "[/red]" in shown
    assert "[link=x]" in shown
    assert not {"\x1b", "\r", "\0", "\udcff"} & set(shown)


def test_a_line_shows_any_text() -> None:
    assert envs._because(HOSTILE).encode().isascii() is False
    assert envs._plain("a\nb\x1bc") == "a\nb\N{REPLACEMENT CHARACTER}c"


def test_json_holds_any_text(capsys: pytest.CaptureFixture[str]) -> None:
    envs._print_json({"reason": HOSTILE, "path": Path("/x"), "users": ("a",)})
    shown = capsys.readouterr().out
    assert shown.isascii()
    assert json.loads(shown) == {"reason": HOSTILE, "path": "/x", "users": ["a"]}
