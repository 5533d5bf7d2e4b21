"""What is preloaded, and who is sent where."""

from __future__ import annotations

import pytest

from flashpool.pool.commands import ZygoteKey
from flashpool.pool.learning import Learner

LEAN = ZygoteKey("base")
PANDAS = ["pandas", "pandas.core", "numpy"]


def test_a_function_that_imported_something_goes_to_the_loaded_zygote_once_it_is_up():
    learner = Learner(("*",))
    assert learner.route("base", "f") == LEAN
    first = learner.observed("base", "f", PANDAS)
    assert first == ZygoteKey("base", 1)
    assert learner.modules(first) == tuple(PANDAS)
    assert learner.route("base", "f") == LEAN, "it is not up yet"
    assert learner.started(first) is None
    assert learner.route("base", "f") == first
    assert learner.route("base", "another") == LEAN, "who needs nothing pays for nothing"


def test_more_modules_make_a_new_profile_that_replaces_the_old():
    learner = Learner(("*",))
    first = learner.observed("base", "f", PANDAS)
    assert learner.observed("base", "g", ["torch"]) is None, "one start at a time"
    learner.started(first)
    second = learner.behind("base")
    assert second == ZygoteKey("base", 2)
    assert set(learner.modules(second)) == {*PANDAS, "torch"}
    assert learner.started(second) == first
    assert learner.behind("base") is None
    assert learner.route("base", "f") == learner.route("base", "g") == second


def test_a_module_that_breaks_a_zygote_is_left_out():
    learner = Learner(("*",))
    first = learner.observed("base", "f", ["threads", *PANDAS])
    learner.failed(first, "threads", "it started a thread")
    assert learner.route("base", "f") == LEAN
    second = learner.observed("base", "f", ["threads", "threads.sub", *PANDAS])
    assert learner.modules(second) == tuple(PANDAS)
    assert learner.denied("base") == {"threads": "it started a thread"}


def test_a_zygote_that_fails_for_no_known_module_is_not_tried_again():
    learner = Learner(("*",))
    first = learner.observed("base", "f", PANDAS)
    learner.failed(first, None, "killed")
    assert learner.observed("base", "f", PANDAS) is None


@pytest.mark.parametrize(
    ("patterns", "learned"), [((), False), (("torch*",), False), (("pandas",), True)]
)
def test_only_allowed_modules_are_learned(patterns, learned):
    assert (Learner(patterns).observed("base", "f", PANDAS) is not None) is learned


def test_a_few_standard_modules_are_not_worth_a_zygote():
    assert Learner(("*",)).observed("base", "f", ["colorsys", "wave"]) is None
    assert Learner(("*",)).observed("base", "f", ["colorsys", "mine"]) is not None


def test_environments_are_apart():
    learner = Learner(("*",))
    learner.started(learner.observed("one", "f", PANDAS))
    assert learner.route("two", "f") == ZygoteKey("two")


def test_what_was_learned_elsewhere_serves_functions_not_known_here():
    learner = Learner(("*",))
    learner.seed("env", PANDAS)
    loaded = ZygoteKey("env", 1)
    assert learner.route("env", "f") == loaded
    assert learner.modules(loaded) == tuple(PANDAS)
    assert learner.route("env", None) == ZygoteKey("env")
    learner.failed(loaded, None, "it died")
    assert learner.route("env", "f") == ZygoteKey("env")
    learner.forget("env")
    assert learner.modules(loaded) == ()


def test_a_seed_keeps_to_the_patterns():
    learner = Learner(("numpy",))
    learner.seed("env", ["pandas", "numpy"])
    assert learner.modules(ZygoteKey("env", 1)) == ("numpy",)
    learner.seed("other", ["pandas"])
    assert learner.route("other", "f") == ZygoteKey("other")
