"""Which modules are preloaded, and which zygote each call goes to."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashpool.pool.calls import Call, Codec, Provision
from flashpool.pool.scheduling.commands import ZygoteKey
from flashpool.pool.scheduling.preloading import BARE, UNUSED, PreloadLearner

LEAN = ZygoteKey("base")
PANDAS = ["pandas", "pandas.core", "numpy"]


def route(learner, environment, function, touches=frozenset(), imports=frozenset()):
    """Return the zygote that a call of the function goes to."""
    return learner.route(
        Call(
            codec=Codec.PICKLE,
            body=b"",
            provision=Provision(environment=environment),
            function_key=function,
            touches=touches,
            imports=imports,
        )
    )


def learned(learner, function="f", modules=PANDAS, environment="base", **facts):
    """Report that a call on the lean zygote imported these; return the zygote started for it."""
    key = learner.observed(ZygoteKey(environment), function, modules, **facts)
    assert key is not None
    assert learner.started(key) == []
    return key


def test_a_function_that_imported_something_goes_to_the_loaded_zygote_once_it_is_up():
    learner = PreloadLearner(("*",))
    assert route(learner, "base", "f") == LEAN
    first = learner.observed(LEAN, "f", PANDAS)
    assert first == ZygoteKey("base", 1)
    assert learner.modules(first) == tuple(PANDAS)
    assert route(learner, "base", "f") == LEAN, "it is not up yet"
    assert learner.started(first) == []
    assert route(learner, "base", "f") == first
    assert route(learner, "base", "another") == LEAN, "who needs nothing pays for nothing"


def test_a_function_gets_no_zygote_with_packages_it_does_not_import():
    learner = PreloadLearner(("*",))
    pandas = learned(learner)
    both = learned(learner, "g", [*PANDAS, "torch"])
    torch = learned(learner, "h", ["torch"])
    assert route(learner, "base", "f") == pandas
    assert route(learner, "base", "g") == both
    assert route(learner, "base", "h") == torch


def test_zygotes_are_started_one_at_a_time():
    learner = PreloadLearner(("*",))
    first = learner.observed(LEAN, "f", PANDAS)
    assert learner.observed(LEAN, "g", ["torch"]) is None
    learner.started(first)
    second = learner.behind("base")
    assert second == ZygoteKey("base", 2)
    assert learner.modules(second) == ("torch",)
    assert learner.started(second) == []
    assert learner.behind("base") is None


def test_a_profile_is_retired_when_a_larger_one_serves_its_functions():
    learner = PreloadLearner(("*",))
    first = learned(learner)
    second = learner.observed(first, "f", ["pandas.plotting", "matplotlib"])
    assert set(learner.modules(second)) == {*PANDAS, "pandas.plotting", "matplotlib"}
    assert learner.started(second) == [first]
    assert route(learner, "base", "f") == second


def test_the_number_of_profiles_is_bounded_and_unused_ones_are_evicted():
    learner = PreloadLearner(("*",), profiles=2)
    used, unused = learned(learner, "a", ["a"]), learned(learner, "b", ["b"])
    for _ in range(5):
        assert learner.observed(LEAN, "c", ["c"]) is None, "both may be of use"
    for _ in range(UNUSED):
        assert route(learner, "base", "a") == used
    assert learner.behind("base") == ZygoteKey("base", 3), "it was called often"
    another = ZygoteKey("base", 3)
    assert learner.started(another) == [unused]
    assert route(learner, "base", "b") == LEAN
    assert route(learner, "base", "c") == another
    assert route(learner, "base", "a") == used


def test_too_many_functions_do_not_cause_endless_starts():
    learner = PreloadLearner(("*",), profiles=1)
    learned(learner, "a", ["a"])
    for _ in range(3):
        for name in "bcde":
            assert learner.observed(LEAN, name, [name]) is None
            assert learner.behind("base") is None


def test_a_module_that_breaks_a_zygote_is_left_out():
    learner = PreloadLearner(("*",))
    first = learner.observed(LEAN, "f", ["threads", *PANDAS])
    learner.failed(first, "threads", "it started a thread")
    assert route(learner, "base", "f") == LEAN
    second = learner.observed(LEAN, "f", ["threads", "threads.sub", *PANDAS])
    assert learner.modules(second) == tuple(PANDAS)
    assert learner.denied("base") == {"threads": "it started a thread"}


def test_a_module_that_a_zygote_did_not_preload_is_not_requested_again():
    learner = PreloadLearner(("*",))
    first = learner.observed(LEAN, "f", ["shared", "sqlite3", *PANDAS])
    learner.skip(first, ["shared"], "it left a descriptor open")
    learner.started(first)
    assert learner.modules(first) == ("sqlite3", *PANDAS)
    assert route(learner, "base", "f") == first
    assert learner.denied("base") == {"shared": "it left a descriptor open"}


def test_without_its_main_packages_a_function_gets_no_profile():
    learner = PreloadLearner(("*",))
    first = learner.observed(LEAN, "f", ["shared", *(f"sqlite3.{n}" for n in range(10))])
    learner.skip(first, ["shared"], "it left a descriptor open")
    assert learner.started(first) == [first], "nobody needs it"
    assert route(learner, "base", "f") == LEAN
    assert learner.observed(LEAN, "f", ["shared", "sqlite3.1"]) is None


def test_a_zygote_that_fails_for_no_known_module_is_not_tried_again():
    learner = PreloadLearner(("*",))
    first = learner.observed(LEAN, "f", PANDAS)
    learner.failed(first, None, "killed")
    assert learner.observed(LEAN, "f", PANDAS) is None


@pytest.mark.parametrize(
    ("patterns", "is_learned"), [((), False), (("torch*",), False), (("pandas",), True)]
)
def test_only_allowed_modules_are_learned(patterns, is_learned):
    assert (PreloadLearner(patterns).observed(LEAN, "f", PANDAS) is not None) is is_learned


def test_a_few_standard_modules_are_not_worth_a_zygote():
    assert PreloadLearner(("*",)).observed(LEAN, "f", ["colorsys", "wave"]) is None
    assert PreloadLearner(("*",)).observed(LEAN, "f", ["colorsys", "mine"]) is not None


def test_environments_have_separate_profiles():
    learner = PreloadLearner(("*",))
    learned(learner, environment="one")
    assert route(learner, "two", "f") == ZygoteKey("two")


# Surroundings that calls change.


READS = {
    "env:HF_HOME": ["pandas.core"],
    "env:TQDM_*": ["numpy"],
    "cwd": ["pandas"],
    "package:optional": ["pandas"],
    "set:KMP": ["numpy"],
    "random": ["numpy"],
}


@pytest.mark.parametrize(
    "touched",
    [
        *("env:HF_HOME", "env:HF_*", "env:*", "env:TQDM_DISABLE", "cwd", "path", "package:*"),
        *("package:numpy", "package:optional", "native:OMP_NUM_THREADS"),
        *("env:KMP", "look:KMP", "random"),
    ],
)
def test_a_call_that_touches_what_imports_read_imports_for_itself(touched):
    learner = PreloadLearner(("*",))
    key = learned(learner)
    learner.read(key, READS)
    assert route(learner, "base", "f", frozenset((touched,))) == LEAN
    assert route(learner, "base", "f") == key, "others are as fast as ever"


def test_every_package_that_reads_a_variable_counts():
    learner = PreloadLearner(("*",))
    one = learned(learner, "f", ["one"])
    learner.read(one, {"env:MODE": ["one"]})
    two = learned(learner, "g", ["two"])
    learner.read(two, {"env:MODE": ["two"]})
    touched = frozenset(("env:MODE",))
    assert route(learner, "base", "f", touched) == route(learner, "base", "g", touched) == LEAN


def test_a_variable_that_a_call_and_an_import_set_keeps_its_last_value():
    learner = PreloadLearner(("*",))
    key = learned(learner)
    learner.read(key, {"set:MODE": ["numpy"]})
    assert route(learner, "base", "f", frozenset(("env:MODE",))) == LEAN


@pytest.mark.parametrize(
    "touched", ["env:HF_TOKEN", "look:HF_HOME", "argv", "locale", "package:helper"]
)
def test_a_call_may_change_what_no_import_reads(touched):
    learner = PreloadLearner(("*",))
    key = learned(learner)
    learner.read(key, READS)
    assert route(learner, "base", "f", frozenset((touched,))) == key


def test_no_profile_is_started_for_a_function_that_changes_what_it_reads():
    learner = PreloadLearner(("*",))
    key = learner.observed(LEAN, "f", PANDAS, touches=["env:HF_HOME"])
    learner.read(key, READS)
    assert learner.started(key) == [key]
    assert learner.observed(LEAN, "f", PANDAS, touches=["env:HF_HOME"]) is None
    (why,) = learner.denied("base").items()
    assert why[0] == "pandas.core"
    assert "HF_HOME" in why[1]


def test_an_observed_change_is_reported_once_and_stops_preloading():
    learner = PreloadLearner(("*",))
    key = learned(learner)
    learner.read(key, READS)
    (conflict,) = learner.changed(key, "f", ["env:HF_HOME", "env:MINE"])
    assert (conflict.what, conflict.module) == ("env:HF_HOME", "pandas.core")
    assert "HF_HOME" in str(conflict)
    assert "pandas.core" in str(conflict)
    assert route(learner, "base", "f") == LEAN
    assert learner.changed(key, "f", ["env:HF_HOME"]) == []
    assert route(learner, "base", "g") == LEAN


def test_a_change_before_any_preload_is_remembered():
    learner = PreloadLearner(("*",))
    assert learner.changed(LEAN, "f", ["env:HF_HOME"]) == []
    key = learner.observed(LEAN, "f", PANDAS)
    learner.read(key, READS)
    assert learner.started(key) == [key]


def test_variables_set_by_imports_do_not_count_as_changes_of_the_call():
    learner = PreloadLearner(("*",))
    learner.changed(LEAN, "f", ["env:KMP_INIT_AT_FORK"])
    key = learner.observed(LEAN, "f", PANDAS)
    read = {"env:KMP_INIT_AT_FORK": ["numpy"], "set:KMP_INIT_AT_FORK": ["numpy"]}
    learner.read(key, read)
    assert learner.started(key) == []
    assert route(learner, "base", "f") == key
    said = frozenset(("env:KMP_INIT_AT_FORK",))
    assert route(learner, "base", "f", said) == LEAN, "the request sets it itself"


def test_if_the_lean_zygote_preloads_there_is_also_a_bare_one():
    learner = PreloadLearner(("*",), ["numpy"])
    learner.read(LEAN, {"env:NPY": ["numpy"]})
    assert route(learner, "base", "f") == LEAN
    assert route(learner, "base", "f", frozenset(("env:NPY",))) == ZygoteKey("base", BARE)
    assert route(learner, "base", "f", frozenset(("env:OTHER",))) == LEAN
    assert learner.modules(ZygoteKey("base", BARE)) == ()


# Knowledge from earlier servers.


def test_learned_packages_apply_to_sources_that_import_the_same():
    learner = PreloadLearner(("*",))
    learner.seed("env", PANDAS, ["pandas"])
    loaded = ZygoteKey("env", 1)
    assert learner.modules(loaded) == tuple(PANDAS)
    named = frozenset(("pandas", "json"))
    assert route(learner, "env", "f", imports=named) == loaded
    assert route(learner, "env", "f", imports=frozenset(("numpy",))) == ZygoteKey("env")
    assert route(learner, "env", None, imports=named) == ZygoteKey("env")
    assert learner.started(loaded) == []
    learner.failed(loaded, None, "it died")
    assert route(learner, "env", "f", imports=named) == ZygoteKey("env")
    learner.forget("env")
    assert learner.modules(loaded) == ()


def test_a_function_that_found_everything_preloaded_keeps_its_profile():
    learner = PreloadLearner(("*",))
    learner.seed("env", PANDAS, ["pandas"])
    loaded = ZygoteKey("env", 1)
    second = learner.observed(loaded, "f", ["matplotlib"], imports=frozenset(("pandas",)))
    assert set(learner.modules(second)) == {*PANDAS, "matplotlib"}
    assert route(learner, "env", "f") == loaded


def test_packages_that_sources_import_are_recorded_for_other_servers():
    learner = PreloadLearner(("*",))
    key = learned(learner, imports=frozenset(("pandas", "json")))
    assert learner.entries(key) == ("pandas",)


def test_a_seed_respects_the_patterns_and_needs_an_entry():
    learner = PreloadLearner(("numpy",))
    learner.seed("env", ["pandas", "numpy"], ["numpy"])
    assert learner.modules(ZygoteKey("env", 1)) == ("numpy",)
    learner.seed("other", ["pandas"], ["pandas"])
    assert route(learner, "other", "f") == ZygoteKey("other")
    learner.seed("third", ["numpy"])
    assert learner.modules(ZygoteKey("third", 1)) == ()


def start_all(learner, key, unfit=()):
    """Start zygotes until no start is pending; return how many started."""
    started = 0
    while key is not None:
        started += 1
        assert started < 100, "zygotes are started for ever"
        modules = set(unfit) & set(learner.modules(key))
        if modules:
            learner.skip(key, modules, "it prints")
        learner.started(key)
        key = learner.behind("base")
    return started


def test_a_profile_that_saves_less_than_existing_ones_is_not_started():
    """Modules of an earlier profile are denied by now, so a new profile would save less."""
    learner = PreloadLearner(("*",))
    old, new = ([f"{name}.m{number}" for number in range(10)] for name in ("old", "new"))
    first = learner.observed(LEAN, "f", old)
    learner.started(first)
    second = learner.observed(LEAN, "g", ["other", *old])
    assert start_all(learner, second, unfit=[*old, "other"]) == 1
    assert start_all(learner, learner.observed(first, "f", new)) <= 1
    assert route(learner, "base", "f") == first


MODULES = st.sampled_from([f"{package}.{part}" for package in "abcd" for part in range(12)])


@settings(max_examples=300, deadline=None)
@given(
    calls=st.lists(st.tuples(st.integers(0, 5), st.sets(MODULES, min_size=1)), max_size=12),
    unfit=st.lists(st.sets(MODULES), min_size=1, max_size=4),
    profiles=st.integers(1, 5),
)
def test_starts_end_whatever_calls_import_and_zygotes_refuse(calls, unfit, profiles):
    learner = PreloadLearner(("*",), profiles=profiles)
    for number, (function, modules) in enumerate(calls):
        key = route(learner, "base", function)
        start_all(
            learner,
            learner.observed(key, function, sorted(modules)),
            unfit[number % len(unfit)],
        )
