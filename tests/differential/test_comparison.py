"""The suite's own code: what counts as a difference, and the table."""

from types import SimpleNamespace

from differential.outcomes import Outcome
from differential.plain import lines
from differential.programs import FORMS, Form, Program
from differential.rows import make_row

from support import cells
from support.cells import Row


def program(**options) -> Program:
    return Program(name="p", group="base", code="def run(): ...\n", entry="run", **options)


def runs(outcome: Outcome, **others: Outcome) -> dict[Form, list[Outcome]]:
    return {form: [others.get(form, outcome)] for form in FORMS}


def test_equal_runs_have_no_differences() -> None:
    outcome = Outcome(result=[1], stdout=("a",), files={"f": "x"})
    row = make_row(program(), [outcome], runs(outcome))
    assert not row.wrong


def test_each_part_of_an_outcome_counts() -> None:
    script = Outcome(result=[1], stdout=("a",), files={"f": "x"})
    row = make_row(
        program(),
        [script],
        runs(
            script,
            cold=Outcome(result=[2], stdout=("a",), files={"f": "x"}),
            warm=Outcome(result=[1], files={"f": "x"}),
            many=Outcome(result=[1], stdout=("a",)),
            parallel=Outcome(error_type="OSError", error="because"),
        ),
    )
    assert row.wrong == {
        "cold": ["result: [2] instead of [1]"],
        "warm": ["stdout: () instead of ('a',)"],
        "many": ["files: f: None instead of x"],
        "parallel": ["error: OSError instead of None (because)"],
    }


def test_fresh_values_must_differ_between_runs() -> None:
    script, cold = Outcome(result={"id": "a", "n": 1}), Outcome(result={"id": "b", "n": 1})
    found: dict[Form, list[Outcome]] = {"cold": [cold], "warm": [cold]}
    row = make_row(program(fresh=("id",)), [script], found)
    assert row.wrong == {"warm": ['not fresh: id is "b"']}

    of_another_kind = Outcome(result={"id": 7, "n": 1})
    row = make_row(program(fresh=("id",)), [script], {"cold": [of_another_kind]})
    assert list(row.wrong) == ["cold"]


def test_runs_with_a_seed_must_equal_the_first_call() -> None:
    script, cold, other = (Outcome(result=[n]) for n in (0.1, 0.2, 0.3))
    found: dict[Form, list[Outcome]] = {"cold": [cold], "warm": [cold], "many": [cold, other]}
    row = make_row(program(like="cold"), [script], found)
    assert row.wrong == {"many": ["result: [0.3] instead of [0.2]"]}


def test_scripts_that_differ_are_an_error_of_the_suite() -> None:
    one, other = Outcome(result=1), Outcome(result=2)
    row = make_row(program(), [one, other], runs(other))
    assert row.wrong == {"plain": ["result: 2 instead of 1"]}


def test_compared_lines_contain_no_source_positions() -> None:
    script = "/some/where/script/main.py:7: UserWarning: text\n  warnings.warn('text')\nprinted\n"
    call = "printed\nflash:run#2:7: UserWarning: text\n"
    assert lines(script) == lines(call) == ("<source>: UserWarning: text", "printed")


def test_the_table_has_the_rows_of_all_reports() -> None:
    right = Row(name="b", group="base", problems={"plain": [], "cold": []}, preloaded=["cold"])
    wrong = Row(name="a", group="base", problems={"cold": ["result: 1 instead of 2"]}, preloaded=[])
    reports = [SimpleNamespace(user_properties=[row.as_property()]) for row in (right, wrong)]
    rows = cells.rows_of([*reports, reports[0], SimpleNamespace()])
    assert rows == [wrong, right]
    text = cells.as_text(rows)
    assert "base   b        ok     ok*" in text
    assert "a, cold: result: 1 instead of 2" in text
    assert "2 programs, 1 of them right in every form" in text
