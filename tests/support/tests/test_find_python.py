"""tests/support/find_python.sh: which interpreter `make` builds with, whatever else is installed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.interpreters import virtualenv

SCRIPT = Path(__file__).parents[1] / "find_python.sh"
VERSION = "{}.{}".format(*sys.version_info)


BASH = shutil.which("bash")


def find(*names, path="/nonexistent", **variables):
    command = [BASH, SCRIPT, *names]
    environment = {"PATH": str(path), **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def facts(python, expression):
    asked = [python, "-I", "-c", f"import sys; print({expression})"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def stand_in(folder, name, code):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{code}\n")
    (folder / name).chmod(0o755)


def test_the_base_python_of_nested_virtualenvs_is_found(tmp_path):
    first = virtualenv(tmp_path / "first")
    second = tmp_path / "second"
    subprocess.run([first, "-m", "venv", "--without-pip", second], check=True)
    found = find(PYTHON=str(second / "bin" / "python")).stdout.strip()
    assert facts(found, "sys.prefix == sys.base_prefix") == "True"
    assert facts(found, "sys.prefix") == sys.base_prefix


@pytest.mark.parametrize("variables", [{}, {"HOME": ""}, {"HOME": "/nonexistent"}], ids=str)
def test_home_need_not_be_set(tmp_path, variables):
    """With a version that does not exist, the script searches everywhere, last in HOME."""
    found = find(VERSION="3.77", **variables)
    assert (found.returncode, found.stdout, found.stderr) == (1, "", "")


def test_shims_without_a_python_are_skipped(tmp_path):
    stand_in(tmp_path / "shims", "python3", "echo 'not installed' >&2; exit 127")
    stand_in(tmp_path / "bin", "python3", f'exec {sys.executable} "$@"')
    found = find(path=f"{tmp_path / 'shims'}:{tmp_path / 'bin'}").stdout.strip()
    assert facts(found, "sys.prefix") == sys.base_prefix


def test_a_given_name_comes_first(tmp_path):
    stand_in(tmp_path / "bin", "python3", "echo /bin/false")
    found = find(sys.executable, path=tmp_path / "bin").stdout.strip()
    assert facts(found, "sys.prefix") == sys.base_prefix


def test_the_wanted_version_is_found(tmp_path):
    stand_in(tmp_path / "bin", "python3", f'exec {sys.executable} "$@"')
    found = find(path=tmp_path / "bin", VERSION=VERSION).stdout.strip()
    assert facts(found, "sys.prefix") == sys.base_prefix


@pytest.mark.parametrize(
    ("status", "words"),
    [(3, "Too old: {python}."), (4, "Without venv or ensurepip: {python} (on Debian and Ubuntu: ")],
    ids=["too old", "without venv"],
)
def test_an_unsuitable_interpreter_is_reported(tmp_path, status, words):
    stand_in(tmp_path / "bin", "python3", f"exit {status}")
    python = str(tmp_path / "bin" / "python3")
    found = find(PYTHON=python)
    assert found.returncode == 1
    assert words.format(python=python) in found.stderr
