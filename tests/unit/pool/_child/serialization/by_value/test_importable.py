"""`by_value.importable`: where an object is, remembered within a bound."""

import contextvars
import gc
import sys
import types
import weakref
from collections.abc import Iterator

import pytest

from flashpool.pool._child.serialization.by_value import importable


@pytest.fixture
def shelf() -> Iterator[types.ModuleType]:
    module = types.ModuleType("shelf")
    module.__spec__ = sys.__spec__
    sys.modules["shelf"] = module
    yield module
    del sys.modules["shelf"]


class Thing:
    """Can be referred to weakly."""


def test_what_was_looked_for_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importable, "_PLACES", 20)
    first = Thing()
    gone = weakref.ref(first)
    assert importable.place_of(first) is None
    del first
    for number in range(30):
        importable.place_of(contextvars.ContextVar(str(number)))
    gc.collect()
    assert gone() is None
    assert len(importable._places) == 20


def test_a_name_that_has_another_value_by_now_is_no_place(shelf: types.ModuleType) -> None:
    thing = shelf.thing = Thing()
    assert importable.place_of(thing) == (shelf, "thing")
    assert importable.place_of(thing) == (shelf, "thing")
    shelf.thing = Thing()
    assert importable.place_of(thing) is None
