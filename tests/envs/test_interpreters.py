"""Finding the requested Python when PATH begins with shims that do not run."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashpool.envs import Environments, InterpreterMissing, Spec
from support.interpreters import another_python

Run = Callable[[Any], Any]

_SHIM = """#!/bin/sh
echo "shims: $0: the command exists in these Python versions: 3.99" >&2
exit 127
"""
_LIAR = """#!/bin/sh
exec {python} "$@"
"""


def _script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def other(setup: Any) -> tuple[str, Path]:
    """Another Python on this machine: its version and path."""
    version, path = another_python()
    return version, path.resolve()


def _acquired(setup: Any, run: Run, version: str) -> str:
    """Return the version that the Python of an environment for that version reports."""

    async def main() -> Path:
        async with Environments(setup.settings()) as environments:
            spec = Spec(requirements=("alpha",), python_version=version)
            with await environments.acquire(spec) as found:
                python: Path = found.python
                return python

    code = "import sys, alpha; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([str(run(main())), "-c", code], capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.parametrize("where", ["next on PATH", "behind the shims"])
def test_shims_that_fail_are_skipped(
    where: str,
    other: tuple[str, Path],
    setup: Any,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    version, python = other
    shims = tmp_path / "tool" / "shims"
    for name in ("python", "python3", f"python{version}"):
        _script(shims / name, _SHIM)
    folders = [shims]
    if where == "next on PATH":
        folders.append(python.parent)
    else:
        folder = tmp_path / "tool" / "versions" / f"{version}.1" / "bin"
        folder.mkdir(parents=True)
        (folder / f"python{version}").symlink_to(python)
    monkeypatch.setenv("PATH", os.pathsep.join([*map(str, folders), "/usr/bin", "/bin"]))
    assert _acquired(setup, run, version) == version


def test_an_interpreter_of_another_version_is_skipped(
    other: tuple[str, Path], setup: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, python = other
    _script(tmp_path / "first" / f"python{version}", _LIAR.format(python=sys.executable))
    folders = [str(tmp_path / "first"), str(python.parent), "/usr/bin", "/bin"]
    monkeypatch.setenv("PATH", os.pathsep.join(folders))
    assert _acquired(setup, run, version) == version


def test_the_error_without_a_working_interpreter_has_advice(
    setup: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _script(tmp_path / "shims" / "python3.77", _SHIM)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "shims"), "/usr/bin", "/bin"]))
    with pytest.raises(InterpreterMissing) as caught:
        _acquired(setup, run, "3.77")
    assert "Python 3.77 is not installed here" in str(caught.value)
    assert "FLASHPOOL_PYTHON_DOWNLOADS" in caught.value.advice


_UV = """#!/bin/sh
echo "$UV_PYTHON_DOWNLOADS $@" >> {log}
exit 2
"""


@pytest.mark.parametrize("allowed", [False, True])
def test_interpreters_are_downloaded_only_if_allowed(
    allowed: bool, setup: Any, run: Run, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    uv = _script(tmp_path / "uv", _UV.format(log=log))
    settings = setup.settings(uv=uv, allow_python_downloads=allowed)

    async def main() -> None:
        async with Environments(settings) as environments:
            spec = Spec(requirements=("alpha",), python_version="3.77")
            with pytest.raises(InterpreterMissing):
                await environments.acquire(spec)

    run(main())
    rows = [line for line in log.read_text().splitlines() if " python " in line]
    assert any("python install 3.77" in row for row in rows) == allowed
    assert all(row.startswith("manual " if allowed else "never ") for row in rows)
    assert allowed or all("--no-python-downloads" in row for row in rows)
