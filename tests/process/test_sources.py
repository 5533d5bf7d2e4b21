"""A source that comes again is compiled once, in the zygote; nobody notices but the clock."""

from __future__ import annotations

KEPT = """def f():
    import sys
    loader = sys.modules["_flashpool.serialization.source_loader"]
    return [name for name, _ in [*loader._compiled, *loader.plain]]
"""


def until_kept(live, code: str) -> None:
    """Call it until a worker finds it compiled."""
    for _ in range(50):
        if "flash:f" in live.value(code):
            return
    raise AssertionError("it is compiled by every worker")


def test_it_is_compiled_ahead_after_a_few_calls(make_live):
    live = make_live(slots=1).ready()
    assert live.value(KEPT) == []
    until_kept(live, KEPT)


def test_one_that_wants_to_be_a_file_is_a_file_in_every_call(make_live):
    live = make_live(slots=1).ready()
    code = "import os\ndef f():\n    return os.path.exists(__file__), open(__file__).read()\n"
    assert [live.value(code) for _ in range(12)] == [(True, code)] * 12


def test_its_traceback_shows_its_lines_all_the_same(make_live):
    live = make_live(slots=1).ready()
    until_kept(live, KEPT)
    raising = "def f():\n    x = 0\n    return 1 / x  # here\n"
    errors = {live.call(raising).error for _ in range(12)}
    assert len(errors) == 1
    assert "return 1 / x  # here" in errors.pop()


def test_what_the_compiler_has_to_say_is_said_in_every_call(make_live):
    live = make_live(slots=1).ready()
    code = 'def f():\n    return "\\d" is 5\n'
    outputs = {live.call(code).output for _ in range(12)}
    assert len(outputs) == 1
    assert b"SyntaxWarning" in outputs.pop()


def test_one_that_is_no_python_fails_alike_in_every_call(make_live):
    live = make_live(slots=1).ready()
    outcomes = [live.call("def f(:\n    pass") for _ in range(8)]
    assert {one.error_type for one in outcomes} == {"SyntaxError"}
    assert live.value("def f(): return 1") == 1


def test_names_of_annotations_that_are_not_there_still_do_no_harm(make_live):
    live = make_live(slots=1).ready()
    code = "def f(x: Missing = 1) -> Missing:\n    return x\n"
    assert [live.value(code) for _ in range(10)] == [1] * 10


def test_nested_too_deep_for_the_compiler(make_live):
    live = make_live(slots=1).ready()
    code = "def f():\n    return " + "(" * 150 + "1" + ")" * 150 + "\n"
    first = live.call(code)
    assert {live.call(code).error_type for _ in range(8)} == {first.error_type}
    deep = "def f():\n    return " + "-" * 20_000 + "1\n"
    first = live.call(deep)
    assert {live.call(deep).error_type for _ in range(8)} == {first.error_type}
    assert live.value("def f(): return 1") == 1
