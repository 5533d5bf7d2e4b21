"""Fixtures of scripted GPUs, for every test (tests/conftest.py imports them)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .scripted import ScriptedNvml, build, compiler


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the library, compiled once."""
    if compiler() is None:
        pytest.skip("no C compiler here, and the scripted NVML library is made from C")
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def scripted(nvml_library: Path, tmp_path: Path) -> ScriptedNvml:
    """A machine with a driver, and no GPU yet."""
    return ScriptedNvml(tmp_path / "gpus", nvml_library)


@pytest.fixture
def nvml_here(scripted: ScriptedNvml) -> Iterator[ScriptedNvml]:
    """The same, seen by this process."""
    with scripted.here():
        yield scripted
