"""The entry package of images: what it starts for each kind of endpoint."""

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docker" / "runpod_sdk_runtime"


@pytest.fixture(scope="module")
def start():
    spec = importlib.util.spec_from_file_location("sdk_runtime_start", FOLDER / "start.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("environ", "kind"),
    [
        ({"RUNPOD_RUNTIME_KIND": "api"}, "api"),
        ({"RUNPOD_RUNTIME_KIND": "Queue"}, "queue"),
        ({"RUNPOD_RUNTIME_KIND": "task"}, "task"),
        ({"RUNPOD_WEBHOOK_GET_JOB": "http://queue.test"}, "queue"),
    ],
)
def test_each_kind_starts_its_server(start, environ, kind):
    assert start.kind_of(environ) == kind


@pytest.mark.parametrize("environ", [{}, {"RUNPOD_RUNTIME_KIND": "other"}])
def test_unknown_kinds_are_refused(start, environ):
    with pytest.raises(SystemExit, match="set it to queue, api or task"):
        start.kind_of(environ)


def test_the_platforms_port_is_used_unless_one_is_set(start):
    assert start.variables_of("api", {"PORT": "80"}) == {"FLASHPOOL_PORT": "80"}
    assert start.variables_of("api", {"PORT": "80", "FLASHPOOL_PORT": "8000"}) == {}
    assert start.variables_of("queue", {"PORT": "80"}) == {}


def test_the_package_needs_only_the_standard_library():
    names = {path.stem for path in FOLDER.rglob("*.py")}
    assert names == {"__init__", "bootstrap", "runner", "start"}
    text = "".join(path.read_text() for path in FOLDER.rglob("*.py"))
    imported = {line.split()[1] for line in text.splitlines() if line.startswith("import ")}
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names
