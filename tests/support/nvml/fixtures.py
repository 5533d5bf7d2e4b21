"""Fixtures of scripted GPUs, for every test (tests/conftest.py imports them)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support import wants

from .scripted import ScriptedNvml, build


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the library, which is compiled once."""
    return build(tmp_path_factory.mktemp("nvml"), wants.c_compiler())


@pytest.fixture
def scripted(nvml_library: Path, tmp_path: Path) -> ScriptedNvml:
    """A machine with a driver and without GPUs."""
    return ScriptedNvml(tmp_path / "gpus", nvml_library)


@pytest.fixture
def nvml_here(scripted: ScriptedNvml) -> Iterator[ScriptedNvml]:
    """The scripted machine, as seen by this process."""
    with scripted.here():
        yield scripted
