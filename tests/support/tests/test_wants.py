"""tests/support/wants.py: what a missing program makes pytest skip, and what it prints at the end."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import wants

TESTS = Path(wants.__file__).parents[1]

SUITE = {
    "test_fixture.py": """
import pytest
from support import wants

@pytest.fixture(scope="module")
def compiler():
    return wants.program("no-such-compiler", "no-other-one")

@pytest.mark.parametrize("number", range(3))
def test_compiles(compiler, number): raise AssertionError
""",
    "test_mark.py": """
import pytest
from support import wants

@wants.needs_program("no-such-tool")
def test_needs_a_tool(): raise AssertionError

@wants.needs_program("no-such-tool", "sh")
def test_has_one_of_two(): pass

@pytest.mark.skip(reason="somebody said so")
def test_is_skipped_for_another_reason(): pass
""",
    "test_file.py": """
from support import wants
raise wants.missing("a-library", "the import failed")
""",
}


def run(folder, suite, *options):
    (folder / "suite").mkdir()
    for name, text in suite.items():
        (folder / "suite" / name).write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\n")
    # Drop the outer run's variables for its workers and directories.
    inherited = {name: one for name, one in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "support.wants",
            "-rs",
            "--basetemp=temp",
            *options,
            "suite",
        ],
        env={**inherited, "PYTHONPATH": str(TESTS), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["in one process", "in two"])
def test_the_run_ends_with_a_list_of_missing_programs(tmp_path, options):
    *_, listed, note, last = run(tmp_path, SUITE, *options)
    assert listed == (
        "skipped, because missing: a-library (1 file), no-such-compiler (3 tests), no-such-tool (1 test)"
    )
    assert note == "(Programs are named like their packages in Debian.)"
    assert re.match(r"=+ 1 passed, 6 skipped in ", last)


def test_nothing_is_printed_if_nothing_is_missing(tmp_path):
    suite = {"test_fine.py": "def test_fine(): pass\n"}
    assert not any("because missing" in line for line in run(tmp_path, suite))


def test_the_first_installed_program_is_found():
    assert wants.program("no-such-shell", "sh", "bash") == shutil.which("sh")


def test_a_program_is_counted_by_the_name_of_its_package(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(pytest.skip.Exception, match="needs gcc: cc or clang is not on PATH"):
        wants.program("cc", "clang")
    assert wants.needs_program("dpkg-query").kwargs["reason"].startswith("needs dpkg: ")
