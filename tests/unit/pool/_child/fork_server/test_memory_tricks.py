"""`memory_tricks`: which tricks are used where. `tests/process` tests that they work."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from flashpool.pool._child.fork_server import memory_tricks
from flashpool.pool._child.fork_server.memory_tricks import ALL, IMMORTAL, LAYOUT, MAPPINGS, UNTRIED

ROOT = Path(__file__).resolve().parents[5]


@pytest.fixture
def on(monkeypatch):
    """Make this interpreter look like another one."""

    def on(minor=13, *, name="cpython", maxsize=2**63 - 1, abiflags=""):
        look = SimpleNamespace(
            implementation=SimpleNamespace(name=name),
            version_info=(3, minor, 0, "final", 0),
            maxsize=maxsize,
            abiflags=abiflags,
        )
        monkeypatch.setattr(memory_tricks, "sys", look)

    return on


@pytest.mark.parametrize(
    ("minor", "used"),
    [
        (10, [LAYOUT, MAPPINGS]),
        (11, [LAYOUT, MAPPINGS]),
        (12, [LAYOUT, IMMORTAL, MAPPINGS]),
        (13, [LAYOUT, IMMORTAL, MAPPINGS]),
    ],
)
def test_tricks_are_on_for_tested_versions(on, minor, used):
    on(minor)
    assert memory_tricks.usable(ALL) == used


@pytest.mark.parametrize("minor", [9, 14, 15, 20])
def test_tricks_are_off_for_untested_versions_unless_asked_for(on, minor):
    on(minor)
    assert memory_tricks.usable(ALL) == []
    assert MAPPINGS in memory_tricks.usable([*ALL, UNTRIED])
    assert (IMMORTAL in memory_tricks.usable([*ALL, UNTRIED])) == (minor >= 12)


@pytest.mark.parametrize(
    "other",
    [{"name": "pypy"}, {"maxsize": 2**31 - 1}, {"abiflags": "t"}],
    ids=["another implementation", "32 bits", "free-threaded"],
)
@pytest.mark.parametrize("minor", [13, 14])
def test_tricks_are_off_where_the_memory_layout_differs(on, minor, other):
    on(minor, **other)
    assert memory_tricks.usable([*ALL, UNTRIED]) == []


@pytest.mark.parametrize("only", ALL)
def test_each_trick_can_be_used_alone(on, only):
    on(13)
    assert memory_tricks.usable([only]) == [only]


def test_all_tricks_can_be_turned_off(on):
    on(13)
    assert memory_tricks.usable([]) == memory_tricks.usable([UNTRIED]) == []


def test_every_supported_version_is_a_tested_one():
    """A version that the project adds has to be tested with the tricks and be listed there."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    supported = re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', text)
    assert supported
    assert [(3, int(minor)) for minor in supported] == list(memory_tricks.TRIED)
    assert sys.version_info[:2] in memory_tricks.TRIED
