"""`by_value.importable`: where an object can be imported from, cached within a bound."""

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
    """An object that supports weak references."""


def test_objects_in_the_cache_are_not_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_name_that_was_rebound_is_not_used(shelf: types.ModuleType) -> None:
    thing = shelf.thing = Thing()
    assert importable.place_of(thing) == (shelf, "thing")
    assert importable.place_of(thing) == (shelf, "thing")
    shelf.thing = Thing()
    assert importable.place_of(thing) is None
