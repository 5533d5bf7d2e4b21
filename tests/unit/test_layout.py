"""Rules about the source files themselves that no linter knows."""

import ast
import graphlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from statistics import median

import grimp
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pool", "envs", "frontends")
SOURCES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
CHILD = ROOT / "pool" / "_child"
UNIT_TESTS = ROOT / "tests" / "unit"
#: Modules that a worker's environment always has, beyond the standard library.
CHILD_MAY_IMPORT = {"cloudpickle", "tblib", "_flashpool"}
OURS = {"flashpool", "_flashpool"}
#: Dependencies that no module imports, and why they are declared all the same.
NOT_IMPORTED = {
    "uv": "the program that builds environments",
    "websockets": "what uvicorn's WebSockets are built on",
}


def nodes_at_run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes, without what only a type checker imports."""
    left = [tree]
    while left:
        node = left.pop()
        yield node
        test = getattr(node, "test", None)
        name = getattr(test, "id", None) or getattr(test, "attr", None)
        if isinstance(node, ast.If) and name == "TYPE_CHECKING":
            left += node.orelse
        else:
            left += ast.iter_child_nodes(node)


@cache
def tree_of(path: Path) -> ast.Module:
    """A file's syntax tree, for reading only: all tests here share it."""
    return ast.parse(path.read_text("utf-8"))


@cache
def imported(path: Path) -> frozenset[tuple[int, str]]:
    """Each import as (relative level, top-level name)."""
    return frozenset(imports_of(ast.walk(tree_of(path))))


def imports_of(nodes: Iterable[ast.AST]) -> Iterator[tuple[int, str]]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((0, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, (node.module or "").partition(".")[0]


@cache
def third_party() -> frozenset[str]:
    """Third-party modules that the product imports at run time."""
    names: set[str] = set()
    for path in [*SOURCES, *(ROOT / "docker").rglob("*.py")]:
        found = imports_of(nodes_at_run_time(tree_of(path)))
        names |= {name for level, name in found if not level}
    return frozenset(names - sys.stdlib_module_names - OURS)


@cache
def declared() -> dict[str, set[str]]:
    """The top-level modules of each dependency that pyproject.toml declares."""
    names = [Requirement(each).name for each in metadata.requires("flashpool") or []]
    return {
        name: {file.parts[0].partition(".")[0] for file in metadata.files(name) or []}
        for name in names
    }


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_child_needs_only_what_every_environment_has():
    allowed = sys.stdlib_module_names | CHILD_MAY_IMPORT
    sources = [path for path in SOURCES if "_child" in path.parts]
    assert len(sources) > 80
    wrong = [
        (ids(path), name)
        for path in sources
        for level, name in sorted(imported(path))
        if (level > len(path.relative_to(CHILD).parts) if level else name not in allowed)
    ]
    assert wrong == []


def test_packages_are_not_imported_as_top_level_ones():
    wrong = [
        (ids(path), name)
        for path in SOURCES
        for level, name in sorted(imported(path))
        if not level and name in PACKAGES
    ]
    assert wrong == []


def test_no_module_has_the_name_of_one_in_the_standard_library():
    assert [ids(p) for p in SOURCES if p.stem in sys.stdlib_module_names] == []


def test_every_package_is_installed_and_typed():
    config = (ROOT / "pyproject.toml").read_text("utf-8")
    for folder in {path.parent for path in SOURCES}:
        name = "flashpool." + ".".join(folder.relative_to(ROOT).parts)
        assert f'    "{name}",\n' in config
        assert (folder / "__init__.py").exists()
        assert (folder / "py.typed").exists()


def test_unit_tests_are_in_the_folders_of_the_code_they_test():
    folders = {path.parent.relative_to(UNIT_TESTS) for path in UNIT_TESTS.rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (ROOT / folder).is_dir()] == []
    assert len(folders) > len(PACKAGES)


def test_folders_and_files_are_small():
    modules = Counter(str(path.parent) for path in SOURCES if path.name != "__init__.py")
    assert [folder for folder, count in modules.items() if count > 20] == []
    assert median(modules.values()) <= 10
    assert [str(path) for path in SOURCES if len(path.read_text("utf-8").splitlines()) > 400] == []


def test_no_import_closes_a_circle():
    """Imports for types and within functions count, too."""
    graph = grimp.build_graph("flashpool", cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    assert len(imports) >= len(SOURCES)
    graphlib.TopologicalSorter(imports).prepare()


def test_no_two_classes_have_one_name():
    nodes = (node for path in SOURCES for node in ast.walk(tree_of(path)))
    names = Counter(node.name for node in nodes if isinstance(node, ast.ClassDef))
    assert [name for name, count in names.items() if count > 1] == []


def test_what_is_imported_is_declared():
    """This includes transitive dependencies, which may disappear."""
    assert third_party() - set().union(*declared().values()) == set()


def test_what_is_declared_is_imported():
    """Every declared dependency is installed with flashpool."""
    used = third_party()
    unused = {name for name, modules in declared().items() if not modules & used}
    assert unused == set(NOT_IMPORTED)


def test_imports_for_type_checkers_do_not_count():
    source = "if TYPE_CHECKING:\n    import a\nelse:\n    import b\ndef f():\n    import c.d\n"
    found = imports_of(nodes_at_run_time(ast.parse(source)))
    assert set(found) == {(0, "b"), (0, "c")}
