"""The installer of the injected server's environment: where each file of a wheel goes."""

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

import pytest

PROGRAM: Final = Path(__file__).resolve().parents[2] / "docker" / "install_wheels.py"


@pytest.fixture(scope="module")
def installer():
    spec = importlib.util.spec_from_file_location("install_wheels", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "place", "is_program"),
    [
        ("pkg/a.py", "site/pkg/a.py", False),
        ("pkg-1.dist-info/RECORD", "site/pkg-1.dist-info/RECORD", False),
        ("pkg-1.data/purelib/pkg/a.py", "site/pkg/a.py", False),
        ("pkg-1.data/platlib/pkg/a.so", "site/pkg/a.so", False),
        ("pkg-1.data/scripts/uv", "env/bin/uv", True),
        ("pkg-1.data/data/share/man.1", "env/share/man.1", False),
    ],
)
def test_each_file_of_a_wheel_has_its_place(
    installer, name: str, place: str, is_program: bool
) -> None:
    found = installer.place_of(name, Path("site"), Path("env"))
    assert found == (place, is_program)


def test_a_wheel_with_an_unknown_place_is_refused(installer) -> None:
    with pytest.raises(zipfile.BadZipFile, match="has no place"):
        installer.place_of("pkg-1.data/headers/a.h", Path("site"), Path("env"))


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-I", PROGRAM, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_an_environment_is_made_and_can_be_moved(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in ("one", "two"):
        with zipfile.ZipFile(wheels / f"{name}-1-py3-none-any.whl", "w") as archive:
            archive.writestr(f"{name}/__init__.py", f"NAME = {name!r}\n")
            archive.writestr(f"{name}-1.data/scripts/{name}", "#!/bin/sh\necho started\n")
    ended = run(wheels, tmp_path / "made")
    assert ended.returncode == 0, ended.stderr
    moved = (tmp_path / "made").rename(tmp_path / "moved")
    code = "import sys, one, two; print(one.NAME, two.NAME, sys.prefix)"
    command = [moved / "bin" / "python", "-I", "-c", code]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout.split() == ["one", "two", str(moved)]
    for name in ("one", "two", "flashpool"):
        assert os.access(moved / "bin" / name, os.X_OK)


@pytest.mark.parametrize("trouble", ["torn wheel", "file in the way"])
def test_errors_of_the_installer_are_reported(tmp_path: Path, trouble: str) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    environment = tmp_path / "made"
    if trouble == "torn wheel":
        (wheels / "torn-1-py3-none-any.whl").write_bytes(b"PK half")
    else:
        environment.write_text("no folder")
    ended = run(wheels, environment)
    assert ended.returncode == 1
    assert ended.stderr.startswith("flashpool: ")
    assert "Traceback" not in ended.stderr
