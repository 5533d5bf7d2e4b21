"""What `make coverage` records in zygotes and workers, and what it prints."""

import json
import subprocess
import sys

import pytest

from support import coverage_boot, measure_coverage

PROGRAM = """
import json, os, sys
sys.path.insert(0, {support!r})
import coverage_boot
text = {text!r}
lines = len(text.splitlines())
cells = memoryview(__import__("mmap").mmap(-1, (2 * (lines + 1)) ** 2))  # shared with forks
coverage_boot.SOURCES["/module.py"] = (0, lines)
coverage_boot.record(cells)
exec(compile(text, "/module.py", "exec"), {{"os": os}})
sys.settrace(None)
import measure_coverage
print(json.dumps(measure_coverage.arcs(bytes(cells), lines)))
"""


def arcs(text: str) -> set[tuple[int, int]]:
    """Return the arcs recorded for a module with this text."""
    support = coverage_boot.__file__.rpartition("/")[0]
    program = PROGRAM.format(support=support, text=text)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {(before, after) for before, after in json.loads(done.stdout)}


FUNCTION = """def f(x):
    if x:
        return 1
    return 2
"""


def test_a_branch_that_is_not_taken_is_not_recorded() -> None:
    module = {(-1, 1), (1, 5), (5, -1)}
    assert arcs(FUNCTION + "f(True)") == module | {(-1, 2), (2, 3), (3, -1)}
    assert arcs(FUNCTION + "f(False)") == module | {(-1, 2), (2, 4), (4, -1)}


def test_a_resumed_generator_continues_its_arcs() -> None:
    ran = arcs("def g():\n    yield 1\n    yield 2\nlist(g())")
    assert {(-1, 2), (2, 3), (3, -1)} <= ran


def test_arcs_of_a_killed_fork_are_recorded() -> None:
    dying = "if os.fork() == 0:\n    f(True)\n    os.kill(os.getpid(), 9)\nos.wait()\nf(False)"
    assert {(2, 3), (2, 4)} <= arcs(FUNCTION + dying)


@pytest.mark.parametrize("often", [1, 2 * coverage_boot._BUSY, 40 * coverage_boot._BUSY])
def test_late_arcs_of_a_busy_function_are_recorded(often: int) -> None:
    calls = f"for _ in range({often}): f(True)\nfor _ in range(64): f(False)"
    assert {(2, 3), (2, 4)} <= arcs(FUNCTION + calls)


def test_folders_and_the_worst_modules_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    def found(ran: int, *missing: int) -> dict[str, object]:
        lines = {"num_statements": 10, "covered_lines": ran}
        branches = {"num_branches": 10, "covered_branches": ran}
        return {"summary": {**lines, **branches}, "missing_lines": missing}

    measure_coverage.tell({"pool/a.py": found(10), "pool/b.py": found(5, 3, 4, 5, 9)})
    told = capsys.readouterr().out.splitlines()
    assert "   75.0 %  pool" in told
    assert "   50.0 %  pool/b.py  3-5, 9" in told
    assert told[-1] == "In all: 75.0 %"
