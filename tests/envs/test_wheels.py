"""An environment's files match its wheels, even if calls write to installed files."""

import fcntl
import logging
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flashpool.envs import Environments, Spec, operations
from flashpool.envs.store import file_copies
from flashpool.envs.store.file_copies import link_mode_for
from flashpool.envs.store.wheel_records import unlike_wheels

Run = Callable[[Any], Any]
VersionIn = Callable[[Path, str], str]


def spec(*requirements: str) -> Spec:
    return Spec(requirements=requirements)


async def acquired(setup: Any, *requirements: str, **changes: Any) -> tuple[Path, str]:
    """Acquire and finish an environment; return its path and origin."""
    async with Environments(setup.settings(**changes)) as environments:
        with await environments.acquire(spec(*requirements)) as found:
            root, origin = found.root, found.origin
        await (await environments.open()).settled()
        return root, origin


def problems(setup: Any, run: Run, **changes: Any) -> list[str]:
    async def main() -> list[str]:
        async with Environments(setup.settings(**changes)) as environments:
            checked = await operations.verify(environments)
            return [each.problem for each in checked if each.problem]

    return run(main())


def module(root: Path, name: str) -> Path:
    (found,) = root.glob(f"lib/*/site-packages/{name}/__init__.py")
    return found


def write_in_place(path: Path) -> None:
    """Write as `open(path, "r+")` does: the same file and size, other content."""
    before = path.stat()
    with path.open("r+") as file:
        text = file.read()
        file.seek(0)
        file.write(text.replace("2.0", "6.6"))
    assert (path.stat().st_ino, path.stat().st_size) == (before.st_ino, before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def in_cache(setup: Any) -> Path:
    (found,) = setup.store("cache").rglob("alpha/__init__.py")
    return found


def test_a_write_in_place_reaches_no_other_environment(
    setup: Any, run: Run, version_in: VersionIn
) -> None:
    one, _ = run(acquired(setup, "alpha"))
    write_in_place(module(one, "alpha"))
    assert "2.0" in in_cache(setup).read_text()
    other, origin = run(acquired(setup, "alpha", "beta"))
    assert origin == "built"
    assert version_in(other / "bin" / "python", "alpha") == "2.0"
    assert len(problems(setup, run)) == 1


def test_a_draft_shares_no_file_with_the_cache_either(setup: Any, run: Run) -> None:
    run(acquired(setup, "alpha"))
    shutil.rmtree(setup.store("envs"))
    shutil.rmtree(setup.store("requests"))
    root, _ = run(acquired(setup, "alpha"))
    assert module(root, "alpha").stat().st_nlink == 1
    assert in_cache(setup).stat().st_nlink == 1


def test_a_changed_file_in_the_cache_causes_a_clean_rebuild(
    setup: Any, run: Run, version_in: VersionIn, caplog: pytest.LogCaptureFixture
) -> None:
    """Changed through hard links of an older version, or by a call that writes to the cache."""
    run(acquired(setup, "alpha", "beta"))
    write_in_place(in_cache(setup))
    root, origin = run(acquired(setup, "alpha"))
    assert origin == "built"
    assert "is withdrawn" in caplog.text
    assert "alpha/__init__.py" in caplog.text
    again, origin = run(acquired(setup, "alpha"))
    assert (again, origin) == (root, "built")
    assert version_in(root / "bin" / "python", "alpha") == "2.0"
    assert run(acquired(setup, "alpha")) == (root, "disk")
    assert problems(setup, run) == []


def test_a_process_with_a_lease_gets_a_rebuilt_environment(
    setup: Any, run: Run, version_in: VersionIn
) -> None:
    """An existing lease stays valid; the next call gets another copy."""
    run(acquired(setup, "alpha", "beta"))
    write_in_place(in_cache(setup))

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            first = await environments.acquire(spec("alpha"))
            await (await environments.open()).settled()
            assert (first.environment.python).exists()
            second = await environments.acquire(spec("alpha"))
            assert second.environment.origin == "built"
            assert version_in(second.environment.python, "alpha") == "2.0"
            first.release()
            second.release()

    run(main())


def test_environments_built_ahead_of_calls_match_their_wheels(
    setup: Any, run: Run, version_in: VersionIn
) -> None:
    run(acquired(setup, "alpha", "beta"))
    write_in_place(in_cache(setup))

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            built = await operations.build(environments, ["alpha"])
            assert built.environment is not None
            assert version_in(built.environment.python, "alpha") == "2.0"

    run(main())
    assert problems(setup, run) == []
    assert run(acquired(setup, "alpha"))[1] == "disk"


def test_with_a_key_no_call_gets_files_that_differ_from_the_wheel(
    setup: Any, run: Run, version_in: VersionIn
) -> None:
    settings = {"volume_key": b"key"}
    run(acquired(setup, "alpha", "beta", **settings))
    (cached,) = (setup.local / "flashpool" / "cache").rglob("alpha/__init__.py")
    write_in_place(cached)
    root, origin = run(acquired(setup, "alpha", **settings))
    assert origin == "built"
    assert version_in(root / "bin" / "python", "alpha") == "2.0"
    assert problems(setup, run, **settings) == []


@pytest.mark.parametrize("key", [None, b"key"])
def test_a_wheel_with_wrong_hashes_is_still_used(
    key: bytes | None, setup: Any, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """If a second installation has the same files, they are accepted; no endless rebuilds."""
    wheel = setup.base.index.add("liar", "1.0", files={"x.py": "x = 1\n"})
    with zipfile.ZipFile(wheel) as file:
        content = {name: file.read(name) for name in file.namelist()}
    content["liar/x.py"] = b"x = 2\n"
    with zipfile.ZipFile(wheel, "w") as file:
        for name, data in content.items():
            file.writestr(name, data)
    caplog.set_level(logging.WARNING)
    origins = [run(acquired(setup, "liar", volume_key=key))[1] for _ in range(3)]
    assert origins == ["built", "disk" if key else "built", "disk"]
    assert "liar/x.py of" in caplog.text
    assert "differs from what its wheel declares" in caplog.text
    assert problems(setup, run, volume_key=key) == []


def test_a_file_of_two_wheels_may_match_either(setup: Any, run: Run) -> None:
    for name in ("one", "two"):
        shared = {f"../tests_of_all/{part}.py": f"whose = {name!r}\n" for part in ("a", "b")}
        setup.base.index.add(name, "1.0", files=shared)
    run(acquired(setup, "one", "two"))
    assert problems(setup, run) == []


def test_files_changed_before_finishing_are_not_sealed(
    setup: Any, run: Run, version_in: VersionIn
) -> None:
    """A file whose size differs from the published one, even without a hash in a wheel."""
    root, _ = run(acquired(setup, "alpha"))
    (root / "flashpool.seal").unlink()
    (root / "pyvenv.cfg").write_text((root / "pyvenv.cfg").read_text() + "more = 1\n")
    again, origin = run(acquired(setup, "alpha"))
    assert (again, origin) == (root, "built")
    assert version_in(root / "bin" / "python", "alpha") == "2.0"


def test_without_a_seal_files_are_compared_with_wheels(setup: Any, run: Run) -> None:
    root, _ = run(acquired(setup, "alpha"))
    (root / "flashpool.seal").unlink()
    assert problems(setup, run) == []
    write_in_place(module(root, "alpha"))
    (problem,) = problems(setup, run)
    assert "alpha/__init__.py" in problem
    assert "differs from its wheel" in problem


@pytest.mark.parametrize(
    "rows",
    ["\0", "a,b", "x.py,sha256=???,1", "x.py,sha256=é,1", '"x.py', "../../../../x,sha256=AA,1", ""],
)
def test_a_forged_list_of_files_is_not_trusted(rows: str, tmp_path: Path) -> None:
    folder = tmp_path / "lib" / "python3.11" / "site-packages" / "x-1.dist-info"
    folder.mkdir(parents=True)
    (folder / "RECORD").write_text(rows)
    known = {"lib/python3.11/site-packages/x.py": "00", "x": "00"}
    assert unlike_wheels(tmp_path, known) == []


def test_hard_links_are_used_only_if_calls_cannot_write_to_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    owner = os.geteuid()
    monkeypatch.setattr(file_copies, "_can_clone", lambda _: False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert link_mode_for(cache) == "copy", "it is made by us"
    cache.mkdir()
    os.chown(cache, owner, -1)
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1000)
    assert link_mode_for(cache) == "hardlink"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert link_mode_for(cache) == "copy"


@pytest.fixture
def cloning(tmp_path: Path) -> Iterator[Path]:
    """A file system that supports cloning of files."""
    made = next((found for name in ("btrfs", "xfs") if (found := shutil.which(f"mkfs.{name}"))), "")
    if not made or os.geteuid() != 0:
        pytest.skip("needs root, and mkfs.btrfs or mkfs.xfs")
    image, folder = tmp_path / "image", tmp_path / "cloning"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(512 * 1024 * 1024)
    subprocess.run([made, "-q", str(image)], check=True)
    done = subprocess.run(["mount", "-o", "loop", str(image), str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("needs a kernel that mounts btrfs or xfs from a file")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_files_are_cloned_where_the_file_system_can(
    cloning: Path, setup: Any, run: Run, version_in: VersionIn
) -> None:
    assert link_mode_for(cloning / "flashpool" / "cache") == "clone"
    setup.volume = cloning
    one, _ = run(acquired(setup, "alpha"))
    assert module(one, "alpha").stat().st_nlink == 1
    write_in_place(module(one, "alpha"))
    other, _ = run(acquired(setup, "alpha", "beta"))
    assert version_in(other / "bin" / "python", "alpha") == "2.0"


def test_cloning_is_detected_by_trying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(fcntl, "ioctl", lambda _file, what, _other: asked.append(what))
    assert file_copies._can_clone(tmp_path / "cache")
    assert asked == [0x40049409]
    assert list((tmp_path / "cache").iterdir()) == []
