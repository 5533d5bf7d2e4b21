"""Bytecode of environments: complete, compiled at the build, and never written afterwards."""

import asyncio
import errno
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flashpool.envs import Environments, Spec, operations
from flashpool.envs.building import bytecode
from flashpool.envs.building.in_environment import bytecode_program
from flashpool.envs.errors import is_full
from support.small_disk import filled, small_disk

Run = Callable[[Any], Any]

MODULE = "".join(f"def f{n}(x):\n    return [x, {n}]\n" for n in range(300))


def spec(*requirements: str) -> Spec:
    return Spec(requirements=requirements)


def built(setup: Any, run: Run, *requirements: str, **changes: Any) -> Path:
    async def main() -> Path:
        async with Environments(setup.settings(**changes)) as environments:
            with await environments.acquire(spec(*requirements)) as found:
                root = found.root
            await (await environments.open()).settled()
            return root

    return run(main())


def problem_of(setup: Any, run: Run, **changes: Any) -> str:
    """Return what `verify` reports about the only environment."""

    async def main() -> str:
        async with Environments(setup.settings(**changes)) as environments:
            (checked,) = await operations.verify(environments)
            return checked.problem

    return run(main())


def bytecode_in(root: Path) -> set[Path]:
    return set(root.rglob("*.pyc"))


def cached(root: Path, module: str) -> Path:
    (source,) = root.glob(f"lib/*/site-packages/{module}")
    return Path(importlib.util.cache_from_source(str(source)))


def python(root: Path, code: str, *options: str) -> str:
    argv = [str(root / "bin" / "python"), *options, "-c", code]
    # Drop the variables of the user who runs the tests: some disable writing of bytecode.
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/", env={})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_imports_write_no_bytecode_into_an_environment(setup: Any, run: Run) -> None:
    """This includes modules that the build did not compile, and other optimisation levels."""
    root = built(setup, run, "beta", compile_bytecode=False)
    assert bytecode_in(root) == set()
    for options in ((), ("-I",), ("-O",)):
        python(root, "import alpha, beta", *options)
    assert bytecode_in(root) == set()


def test_programs_see_bytecode_settings_as_in_plain_python(
    setup: Any, run: Run, tmp_path: Path
) -> None:
    root = built(setup, run, "beta", compile_bytecode=False)
    (tmp_path / "mine.py").write_text("value = 1\n")
    code = (
        f"import sys, os; sys.path.insert(0, {str(tmp_path)!r}); import mine, alpha\n"
        "print(sys.dont_write_bytecode, sys.flags.dont_write_bytecode, sys.pycache_prefix, "
        "mine.__cached__, os.path.exists(mine.__cached__), alpha.__cached__)"
    )
    theirs = cached(root, "alpha/__init__.py")
    mine = importlib.util.cache_from_source(str(tmp_path / "mine.py"))
    assert python(root, code) == f"False 0 None {mine} True {theirs}"
    assert not theirs.exists()


def test_bytecode_elsewhere_is_written_where_a_program_wants_it(
    setup: Any, run: Run, tmp_path: Path
) -> None:
    root = built(setup, run, "beta", compile_bytecode=False)
    code = f"import sys; sys.pycache_prefix = {str(tmp_path / 'cache')!r}; import alpha"
    python(root, code)
    assert any("alpha" in str(path) for path in (tmp_path / "cache").rglob("*.pyc"))
    assert bytecode_in(root) == set()


def test_all_modules_are_compiled_at_the_build(setup: Any, run: Run) -> None:
    setup.base.index.add(
        "odd", "1.0", files={"bad.py": "def f(:\n", "good.py": MODULE, "deep/x.py": "x = 1\n"}
    )
    root = built(setup, run, "odd")
    names = {path.name.partition(".")[0] for path in bytecode_in(root)}
    assert names == {"__init__", "good", "x", "_flashpool_environment"}
    assert problem_of(setup, run) == ""
    code = "import odd.good; print(odd.good.__cached__, odd.good.f1.__code__.co_filename)"
    source = next(root.glob("lib/*/site-packages/odd/good.py"))
    assert python(root, code) == f"{cached(root, 'odd/good.py')} {source}"


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def of_another_module(path: Path) -> None:
    header = path.read_bytes()[:8]
    path.write_bytes(header + b"\1\2\3\4" * 2 + path.read_bytes()[16:])


@pytest.mark.parametrize("damage", [cut, of_another_module])
@pytest.mark.parametrize("sealed", [True, False])
def test_bytecode_that_does_not_match_its_module_is_found(
    sealed: bool, damage: Callable[[Path], None], setup: Any, run: Run
) -> None:
    root = built(setup, run, "beta")
    damage(cached(root, "alpha/__init__.py"))
    if not sealed:
        (root / "flashpool.seal").unlink()
    assert problem_of(setup, run)


def test_added_bytecode_is_found(setup: Any, run: Run) -> None:
    root = built(setup, run, "beta", compile_bytecode=False)
    assert problem_of(setup, run) == ""
    python(root, "import alpha, py_compile; py_compile.compile(alpha.__file__)")
    assert "added after sealing" in problem_of(setup, run)


@pytest.mark.parametrize("compiled", [True, False])
def test_truncated_bytecode_is_not_sealed(compiled: bool, setup: Any, run: Run) -> None:
    """A call may have compiled modules on a full disk before the build did."""
    root = built(setup, run, "beta")
    module = cached(root, "alpha/__init__.py")
    whole = module.read_bytes()
    cut(module)
    (root / "flashpool.seal").unlink()
    assert built(setup, run, "beta", compile_bytecode=compiled) == root
    assert (root / "flashpool.seal").exists()
    assert (module.read_bytes() == whole) if compiled else not module.exists()
    assert problem_of(setup, run) == ""
    python(root, "import beta, alpha")


def test_concurrent_compilers_write_complete_files_and_keep_good_ones(tmp_path: Path) -> None:
    """Where claims do not work, two processes finish the same environment."""
    for number in range(30):
        (tmp_path / f"m{number}.py").write_text(MODULE)
    program = [sys.executable, "-I", "-S", bytecode_program.__file__]
    argv = [*program, "compile", str(tmp_path), str(tmp_path), str(tmp_path)]
    running = [subprocess.Popen(argv, stdout=subprocess.PIPE, env={}) for _ in range(3)]
    for process in running:
        out, _ = process.communicate()
        assert json.loads(out) == {"bad": [], "error": None}
    folder = tmp_path / "__pycache__"
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}
    assert len(before) == 30
    assert list(bytecode_program.problems(str(tmp_path))) == []
    subprocess.run(argv, stdout=subprocess.DEVNULL, check=True, env={})
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in before} == before


def test_leftovers_of_a_killed_compilation_are_removed(setup: Any, run: Run) -> None:
    root = built(setup, run, "beta")
    path = cached(root, "alpha/__init__.py")
    path.with_name(f"{path.name}.12345678{bytecode_program.UNFINISHED}").write_bytes(b"half")
    assert problem_of(setup, run) == ""


def test_a_write_error_leaves_no_truncated_bytecode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that takes only half of the last write reports the error at the next one."""
    (tmp_path / "m.py").write_text(MODULE)
    write = os.write

    def full(handle: int, data: memoryview) -> int:
        if len(data) <= 1000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        bytecode_program.compile_module(str(tmp_path / "m.py"), "m.py")
    assert list((tmp_path / "__pycache__").iterdir()) == []


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "small") as folder:
        yield folder


@pytest.mark.parametrize("key", [None, b"key"])
def test_a_disk_that_is_full_for_a_moment_leaves_no_truncated_bytecode(
    key: bytes | None, setup: Any, run: Run, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup.base.index.add("big", "1.0", files={f"m{n}.py": MODULE for n in range(40)})
    setup.volume = disk
    complete = bytecode.complete

    async def on_a_full_disk(*args: Any, **named: Any) -> None:
        with filled(disk, leaving=200_000):
            try:
                await complete(*args, **named)
            except OSError as error:
                failures.append(error)
                raise

    failures: list[OSError] = []
    monkeypatch.setattr(bytecode, "complete", on_a_full_disk)
    settings = {"volume_key": key, "mode": "volume"}
    root = built(setup, run, "big", **settings)
    python(root, "import big.m1, big.m39")
    # With a key, sealing precedes publication, so the build goes to another disk.
    # Without a key, the environment is finished later.
    assert root.is_relative_to(disk) == (key is None)
    assert list(disk.glob("flashpool/envs/*/flashpool.seal")) == []
    assert failures
    assert all(is_full(error) for error in failures)
    monkeypatch.setattr(bytecode, "complete", complete)
    root = built(setup, run, "big", **settings)
    assert problem_of(setup, run, **settings) == ""
    assert len([path for path in bytecode_in(root) if path.name.startswith("m")]) == 40
    python(root, "import big.m1, big.m39")


def test_a_python_that_dies_over_a_module_leaves_an_environment_that_works(
    setup: Any, run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = setup.local / "dies.py"
    setup.local.mkdir()
    program.write_text("import os; os.abort()\n")
    monkeypatch.setattr(bytecode, "_PROGRAM", program)
    root = built(setup, run, "beta")
    assert "not all bytecode" in caplog.text
    assert (root / "flashpool.seal").exists()
    python(root, "import beta, alpha")


def test_a_file_that_the_check_cannot_read_is_a_problem(setup: Any, run: Run) -> None:
    root = built(setup, run, "beta")
    (root / "bin" / "python").unlink()
    (root / "bin" / "python").symlink_to("/bin/false")
    (root / "flashpool.seal").unlink()
    assert "cannot be checked" in asyncio.run(bytecode.problems(root))[0]


def test_hash_based_bytecode_is_checked_by_its_hash(tmp_path: Path) -> None:
    source = tmp_path / "m.py"
    source.write_text("x = 1\n")
    code = "import py_compile, sys; py_compile.compile(sys.argv[1], invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)"
    subprocess.run([sys.executable, "-c", code, str(source)], check=True, env={})
    assert list(bytecode_program.problems(str(tmp_path))) == []
    source.write_text("x = 2\n")
    ((_, wrong),) = bytecode_program.problems(str(tmp_path))
    assert wrong == "does not match its source"
