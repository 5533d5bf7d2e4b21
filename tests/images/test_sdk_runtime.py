"""The entry package as a distribution: built, installed into a fresh virtualenv, and started there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from e2e.server import FLASHPOOL
from images.injected import ROOT, answer, stop
from uv import find_uv_bin

#: Seconds for a build, which may fetch packages that are not on this machine yet.
_BUILD_S = 300


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a virtualenv that has the distribution, and flashpool on PATH only."""
    folder = tmp_path_factory.mktemp("runtime")
    # A build leaves folders in its sources.
    skipped = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT / "docker" / "runpod_sdk_runtime", folder / "source", ignore=skipped)
    _uv("build", "--wheel", "--out-dir", folder, folder / "source")
    (wheel,) = folder.glob("flashpool_sdk_runtime-*.whl")
    _uv("venv", "--python", sys.executable, folder / "venv")
    found = folder / "venv" / "bin" / "python"
    _uv("pip", "install", "--offline", "--no-deps", "--python", found, wheel)
    return found


def _uv(*arguments: object) -> None:
    command = [find_uv_bin(), *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_S, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_package_starts_flashpool_from_a_fresh_virtualenv(python: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    environ = {
        "PATH": f"{Path(FLASHPOOL).parent}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "RUNPOD_RUNTIME_KIND": "api",
        "FLASHPOOL_PORT": "0",
        "FLASHPOOL_ADMIN_PORT": "0",
        "FLASHPOOL_LOCAL_DIR": str(tmp_path / "local"),
    }
    with log.open("wb") as file:
        process = subprocess.Popen(
            [python, "-m", "runpod_sdk_runtime.bootstrap"], env=environ, stdout=file, stderr=file
        )
    try:
        # Calls see the virtualenv that the package was started from.
        prefix, _ = answer(process, lambda: log.read_text(errors="replace"))
        assert os.path.realpath(prefix) == os.path.realpath(python.parents[1])
    finally:
        stop(process)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("module", ["bootstrap", "task.runner"])
def test_without_flashpool_the_package_reports_the_error(python: Path, module: str) -> None:
    ended = subprocess.run(
        [python, "-m", f"runpod_sdk_runtime.{module}"],
        env={"PATH": "/usr/bin:/bin", "RUNPOD_RUNTIME_KIND": "queue"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert "flashpool is not installed for this Python" in ended.stderr
