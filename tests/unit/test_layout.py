"""Rules about the source files themselves that no linter knows."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pool", "envs", "frontends")
SOURCES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
#: What a worker's environment always has, beyond the standard library.
CHILD_MAY_IMPORT = {"cloudpickle", "tblib", "_flashpool"}


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Each import as (relative level, top-level name)."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, (node.module or "").partition(".")[0]


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [p for p in SOURCES if p.parent.name == "_child"], ids=ids)
def test_the_child_needs_only_what_every_environment_has(path):
    allowed = sys.stdlib_module_names | CHILD_MAY_IMPORT
    assert {(level, name) for level, name in imported(path) if level > 1} == set()
    assert {name for level, name in imported(path) if not level and name not in allowed} == set()


@pytest.mark.parametrize("path", SOURCES, ids=ids)
def test_packages_are_not_imported_as_top_level_ones(path):
    assert {name for level, name in imported(path) if not level}.isdisjoint(PACKAGES)


def test_no_module_has_the_name_of_one_in_the_standard_library():
    assert [ids(p) for p in SOURCES if p.stem in sys.stdlib_module_names] == []


def test_every_package_is_installed_and_typed():
    config = (ROOT / "pyproject.toml").read_text("utf-8")
    for folder in {path.parent for path in SOURCES}:
        name = "flashpool." + ".".join(folder.relative_to(ROOT).parts)
        assert f'"{name}" = "{folder.relative_to(ROOT)}"' in config
        assert (folder / "__init__.py").exists()
        assert (folder / "py.typed").exists()
