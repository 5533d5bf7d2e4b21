"""Which loaded modules another process would find by their names."""

import collections.abc
import importlib
import sys
import types

import pytest

from flashpool.pool._child.serialization.by_value import lost_modules


@pytest.mark.parametrize("name", ["collections.abc", "os.path", "xml.etree.ElementTree", "time"])
def test_modules_of_the_standard_library_are_found_by_all_their_names(name: str) -> None:
    importlib.import_module(name)
    assert not lost_modules.is_lost(name)


def test_no_loaded_module_of_the_standard_library_is_lost() -> None:
    known = [name for name in sys.modules if name.partition(".")[0] in sys.stdlib_module_names]
    assert collections.abc.Mapping.__module__ in known
    assert [name for name in known if name != "__main__" and lost_modules.is_lost(name)] == []


def test_a_module_made_by_hand_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lost_modules, "_findable", {})
    monkeypatch.setitem(sys.modules, "made_by_hand", types.ModuleType("made_by_hand"))
    assert lost_modules.is_lost("made_by_hand")
