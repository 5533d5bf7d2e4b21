"""The real client, unmodified, against the real server (live LB, both ways to make a stub)."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e.server import Server
from e2e.world import World

pytestmark = [pytest.mark.shared_pool, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with World(tmp_path_factory.mktemp("server")).server() as server:
        yield server


@pytest.fixture(scope="module", params=["A", "B"])
def outcomes(
    request: pytest.FixtureRequest,
    server: Server,
    client_python: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """The outcome of every call of client/calls.py."""
    home = tmp_path_factory.mktemp("home")
    done = subprocess.run(
        [client_python, Path(__file__).parent / "client" / "calls.py", request.param, server.url],
        cwd=home,
        env={"HOME": str(home), "PATH": os.environ["PATH"], "TMPDIR": str(home)},
        capture_output=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    decoded: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return decoded


@pytest.mark.parametrize(
    ("function", "value"),
    [
        ("add", "42"),
        ("uses_a_package", "'1.0'"),
        ("add_later", "42"),
        ("nothing", "None"),
        ("imports_module", "42"),
        (
            "returns_types",
            "{'set': {1, 2}, 'when': datetime.date(2020, 1, 2), 'bytes': b'\\x00\\xff', 'inf': inf}",
        ),
        ("large", 7 * 1024 * 1024),
    ],
)
def test_values(outcomes: dict[str, Any], function: str, value: object) -> None:
    assert outcomes[function] == {"value": value}


@pytest.mark.parametrize(
    ("function", "texts"),
    [
        ("needs_what_is_not_there", ["No set of versions", "alpha==7"]),
        ("imports_what_is_not_there", ["No module named 'qqzz'", "in `dependencies`"]),
        ("fails", ["ValueError: no such luck", "in fails", "raise ValueError"]),
        ("too_large", ["bytes", "Return less"]),
        ("unpicklable", ["lock"]),
        ("leaves", ["SystemExit", "3"]),
        ("dies", ["exit code 7"]),
    ],
)
def test_errors(outcomes: dict[str, Any], function: str, texts: list[str]) -> None:
    assert outcomes[function]["raised"] == "Exception"
    assert outcomes[function]["text"].startswith("Remote execution failed: ")
    for text in texts:
        assert text in outcomes[function]["text"]


def test_classes_that_a_functions_source_defines(
    server: Server, client_python: Path, tmp_path: Path
) -> None:
    """An instance is used by a client that has no such module; its own ``__main__`` stays as it is."""
    done = subprocess.run(
        [client_python, Path(__file__).parent / "client" / "values.py", server.url],
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)},
        capture_output=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout.splitlines()[-1])
    error = found.pop("error")
    assert found == {
        "module": "__flash_live__",
        "class": "__flash_live__.Point",
        "double": 42,
        "main": [],
        "imported": False,
    }
    assert "Odd: 3" in error
