"""A source that recurs is compiled once, in the zygote; calls only get faster."""

from __future__ import annotations

KEPT = """def f():
    import sys
    loader = sys.modules["_flashpool.serialization.source_loader"]
    return [name for name, _ in [*loader._compiled, *loader.plain]]
"""


def until_kept(live, code: str) -> None:
    """Call the source until a worker finds it compiled."""
    for _ in range(50):
        if "flash:f" in live.value(code):
            return
    raise AssertionError("it is compiled by every worker")


def test_a_source_is_compiled_ahead_after_a_few_calls(make_live):
    live = make_live(slots=1).ready()
    assert live.value(KEPT) == []
    until_kept(live, KEPT)


def test_a_source_that_reads_its_file_finds_it_in_every_call(make_live):
    live = make_live(slots=1).ready()
    code = "import os\ndef f():\n    return os.path.exists(__file__), open(__file__).read()\n"
    assert [live.value(code) for _ in range(12)] == [(True, code)] * 12


def test_tracebacks_of_a_compiled_source_show_its_lines(make_live):
    live = make_live(slots=1).ready()
    until_kept(live, KEPT)
    raising = "def f():\n    x = 0\n    return 1 / x  # here\n"
    errors = {live.call(raising).error for _ in range(12)}
    assert len(errors) == 1
    assert "return 1 / x  # here" in errors.pop()


def test_warnings_of_the_compiler_appear_in_every_call(make_live):
    live = make_live(slots=1).ready()
    code = 'def f():\n    return "\\d" is 5\n'
    outputs = {live.call(code).output for _ in range(12)}
    assert len(outputs) == 1
    assert b"SyntaxWarning" in outputs.pop()


def test_a_syntax_error_is_the_same_in_every_call(make_live):
    live = make_live(slots=1).ready()
    outcomes = [live.call("def f(:\n    pass") for _ in range(8)]
    assert {one.error_type for one in outcomes} == {"SyntaxError"}
    assert live.value("def f(): return 1") == 1


def test_undefined_names_in_annotations_are_tolerated(make_live):
    live = make_live(slots=1).ready()
    code = "def f(x: Missing = 1) -> Missing:\n    return x\n"
    assert [live.value(code) for _ in range(10)] == [1] * 10


def test_a_source_nested_too_deep_fails_the_same_way_in_every_call(make_live):
    live = make_live(slots=1).ready()
    code = "def f():\n    return " + "(" * 150 + "1" + ")" * 150 + "\n"
    first = live.call(code)
    assert {live.call(code).error_type for _ in range(8)} == {first.error_type}
    deep = "def f():\n    return " + "-" * 20_000 + "1\n"
    first = live.call(deep)
    assert {live.call(deep).error_type for _ in range(8)} == {first.error_type}
    assert live.value("def f(): return 1") == 1
