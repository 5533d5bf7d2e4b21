"""docs/protocol.md lists request fields, errors, figures and messages; CONTRIBUTING.md, files."""

import dataclasses
import importlib
import re
from pathlib import Path

import pytest

from flashpool import envs, pool
from flashpool.frontends.admin.stats_document import StatsDocument
from flashpool.frontends.schema import FunctionRequest
from flashpool.pool import errors
from flashpool.pool._child import wire

ROOT = Path(__file__).parents[2]
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text("utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
#: Objects that the reference documents from docstrings: classes, and modules with their members.
REFERENCE = {
    name
    for page in (ROOT / "docs" / "reference").glob("*.md")
    for name in re.findall(r"^::: (\S+)$", page.read_text("utf-8"), re.MULTILINE)
}
#: Words in backticks in the first column of a table.
LISTED = {
    word
    for row in re.findall(r"^\| (.*?) \|", PROTOCOL, re.MULTILINE)
    for word in re.findall(r"`(\w+)", row)
}
#: The front-ends raise these before there is a call.
REFUSALS = {"Unauthorized", "PayloadTooLarge"}


def frames() -> list[str]:
    """Names of the kinds of frame in `wire`, from the first number to the last."""
    names = [name for name, value in vars(wire).items() if name.isupper() and type(value) is int]
    return names[names.index("CALL") : names.index("FLUSHED")]


def operations() -> list[str]:
    """Names of the messages on the control socket."""
    named = {name: value for name, value in vars(wire).items() if type(value) is str}
    return [value for name, value in named.items() if name.lower() == value]


@pytest.mark.parametrize("name", FunctionRequest.__struct_fields__)
def test_each_field_of_a_request_has_a_row(name):
    assert name in LISTED


@pytest.mark.parametrize("name", [one.name for one in dataclasses.fields(StatsDocument)])
def test_each_figure_has_a_row(name):
    assert name in LISTED


@pytest.mark.parametrize("name", errors.BY_NAME)
def test_each_error_has_a_row_and_can_be_imported(name):
    assert name in LISTED
    assert name in REFUSALS or getattr(pool, name) is errors.BY_NAME[name]


@pytest.mark.parametrize("name", operations())
def test_each_message_of_the_control_socket_has_a_row(name):
    assert name in LISTED


@pytest.mark.parametrize("name", frames())
def test_each_kind_of_frame_has_a_row(name):
    number = getattr(wire, name)
    shown = name.removeprefix("WORKER_")
    assert re.search(rf"^\| {shown} \| {number} \|", PROTOCOL, re.MULTILINE)


# `build/` is there once something was built.
@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`(?!build/)([\w.]+/[\w./]*)`", CONTRIBUTING)))
)
def test_each_file_that_a_recipe_names_exists(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize(
    "name", [f"{one.__name__}.{name}" for one in (pool, envs) for name in one.__all__]
)
def test_each_public_name_of_the_library_is_in_the_reference(name: str) -> None:
    package, _, short = name.rpartition(".")
    in_errors = hasattr(importlib.import_module(f"{package}.errors"), short)
    assert name in REFERENCE or (in_errors and f"{package}.errors" in REFERENCE)
