"""A row of the table: a program in each form, and what was wrong with it."""

from concurrent.futures import ThreadPoolExecutor

from differential.outcomes import Outcome, differences, repeated
from differential.plain import Plain
from differential.programs import FORMS, Form, Program
from differential.served import Served

from support.cells import PLAIN, Row

#: What came of each form of one program.
Runs = dict[Form, list[Outcome]]


def make_rows(programs: list[Program], plain: Plain, served: Served) -> dict[str, Row]:
    """Run all of them in all forms."""
    with ThreadPoolExecutor(1) as threads:
        scripts = threads.map(plain.run, programs)
        found = served.run(programs)
        return {
            program.name: _checked(program, plain, script, found[program.name])
            for program, script in zip(programs, scripts, strict=True)
        }


def _checked(program: Program, plain: Plain, script: Outcome, found: Runs) -> Row:
    """The row; before it says that calls are wrong, the script is run again.

    Its first run may have done what is done once for a user, such as finding the fonts.
    """
    row = make_row(program, [script], found)
    if row.wrong:
        scripts = [script, plain.run(program, 1)]
        if differences(program, *scripts):
            scripts = [scripts[1], plain.run(program, 2)]
        row = make_row(program, scripts, found)
    return row


def make_row(program: Program, scripts: list[Outcome], found: Runs) -> Row:
    """Compare every run with what it must be like, and the fresh values with each other."""
    *others, expected = scripts
    problems: dict[str, list[str]] = {PLAIN: []}
    if program.like == "cold":
        expected = found["cold"][0]
    elif others:
        # Scripts that differ among themselves are this suite's own mistake.
        problems[PLAIN] = differences(program, *scripts)
    forms = [form for form in FORMS if form in found]
    runs = [*scripts, *(outcome for form in forms for outcome in found[form])]
    again = iter(repeated(program, runs)[len(scripts) :])
    for form in forms:
        # What is wrong with several runs of one form is said once.
        said: dict[str, None] = {}
        for outcome in found[form]:
            said.update(dict.fromkeys([*differences(program, expected, outcome), *next(again)]))
        problems[form] = list(said)
    return Row(
        name=program.name,
        group=program.group,
        problems=problems,
        preloaded=[form for form in forms if found[form][-1].preloaded],
    )
