"""Fixtures of every test: a marker by folder, private directories, and a check for leaks."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from support import cells, leaks
from support.artifacts import build_artifact
from support.client import client_python as make_client_python
from support.nvml.fixtures import nvml_here, nvml_library, scripted  # noqa: F401
from support.wants import pytest_terminal_summary  # noqa: F401

#: Folders whose tests carry the marker of the same name.
MARKED_FOLDERS: Final = ("contract", "process", "e2e", "gpu", "differential")
#: Kinds of leaks still checked per test when a pool outlives the test.
OWN_KINDS: Final = frozenset({"shm", "file"})

_private_tmp: Path | None = None
_private_cache: Path | None = None


def pytest_addoption(parser: pytest.Parser) -> None:
    # Defined here, because options in a subfolder's conftest are read too late.
    parser.addoption("--differential-table", help="file for the table of tests/differential")


class Table:
    """Prints the table of the differential tests."""

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        cells.summarize(terminalreporter, terminalreporter.config.getoption("differential_table"))


def pytest_configure(config: pytest.Config) -> None:
    global _private_tmp, _private_cache
    # A shell makes background jobs ignore SIGINT, and processes started here would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as `nohup` does
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    config.pluginmanager.register(Table())
    # tmp_path stays in its usual place, for inspection after a failure.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    if not hasattr(config, "workerinput"):  # test workers inherit the main process's directory
        _private_cache = _moved_cache()
    # A short path, because socket paths may not exceed 107 bytes.
    _private_tmp = Path(tempfile.mkdtemp(prefix="fp-"))
    os.environ["TMPDIR"] = tempfile.tempdir = str(_private_tmp)
    leaks.adopt_orphans()


def pytest_unconfigure(config: pytest.Config) -> None:
    tempfile.tempdir = None
    os.environ.pop("TMPDIR", None)
    for folder in (_private_tmp, _private_cache):
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _moved_cache() -> Path:
    """Another cache directory of the user: servers keep tokens there, and build environments.

    uv keeps its own, or every run would download what tests install.
    """
    before = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    os.environ.setdefault("UV_CACHE_DIR", str(before / "uv"))
    found = Path(tempfile.mkdtemp(prefix="fp-cache-"))
    os.environ["XDG_CACHE_HOME"] = str(found)
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for folder in set(MARKED_FOLDERS).intersection(item.path.parts):
            item.add_marker(folder)


@pytest.fixture(scope="session")
def client_python() -> Path:
    """An interpreter with the real client and without flashpool."""
    return make_client_python()


@pytest.fixture(scope="session")
def shop_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of the real client, with one load-balanced resource and two queue resources."""
    return build_artifact("shop", tmp_path_factory.mktemp("artifact"))


# Autouse fixtures are set up before the others of their scope and torn down after them: each
# snapshot is older than what the test's own fixtures make, younger than what outlives it.


@pytest.fixture(scope="session", autouse=True)
def _session_leaves_nothing() -> Iterator[None]:
    yield from _nothing_left("the session")


@pytest.fixture(scope="module", autouse=True)
def _module_leaves_nothing(_session_leaves_nothing: None) -> Iterator[None]:
    yield from _nothing_left("the module's fixtures")


@pytest.fixture(autouse=True)
def _test_leaves_nothing(
    request: pytest.FixtureRequest, _module_leaves_nothing: None
) -> Iterator[None]:
    only = OWN_KINDS if request.node.get_closest_marker("shared_pool") else None
    yield from _nothing_left("the test", only)


def _nothing_left(who: str, only: frozenset[str] | None = None) -> Iterator[None]:
    before = leaks.Snapshot.take()
    yield
    left = leaks.wait_for_leaks(before, only=only)
    leaks.kill(left)
    if left:
        listing = "\n  ".join(map(str, left))
        pytest.fail(f"{who} left behind, after {leaks.GRACE_S:g} s:\n  {listing}", pytrace=False)
