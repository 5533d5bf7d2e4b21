"""Archives: contents round-trip, hostile members are refused, and no registry is needed."""

import asyncio
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from flashpool.envs import Environments, Spec, Tampered, uv_cli
from flashpool.envs.archives.extraction import Promise, extract
from flashpool.envs.building import bytecode

Run = Callable[[Any], Any]


def member(name: str, data: bytes = b"", **changes: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in changes.items():
        setattr(info, key, value)
    return info, data


def hostile(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Promise:
    """Write an archive with these members, and a valid manifest for it."""
    import hashlib

    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    packed = zstandard.ZstdCompressor().compress(raw.getvalue())
    path.write_bytes(packed)
    return Promise(
        name="x",
        sha256=hashlib.sha256(packed).hexdigest(),
        size=len(packed),
        members=len(members),
        content_bytes=sum(len(data) for _, data in members),
    )


@pytest.fixture
def target(tmp_path: Path) -> Path:
    made = tmp_path / "target"
    made.mkdir()
    return made


def test_valid_archives_are_unpacked(tmp_path: Path, target: Path) -> None:
    archive = tmp_path / "a"
    promise = hostile(
        archive,
        member("lib", type=tarfile.DIRTYPE),
        member("lib/x.py", b"x = 1", mtime=1234, mode=0o4777),
        member("deep/er/y", b""),
    )
    extract(archive, promise, target)
    assert (target / "lib/x.py").read_bytes() == b"x = 1"
    status = (target / "lib/x.py").stat()
    assert (int(status.st_mtime), status.st_mode & 0o7777) == (1234, 0o755)
    assert (target / "deep/er/y").is_file()


@pytest.mark.parametrize(
    "bad",
    [
        [member("/etc/x", b"1")],
        [member("../x", b"1")],
        [member("a/../../x", b"1")],
        [member("a//b", b"1")],
        [member("./a", b"1")],
        [member("link", type=tarfile.SYMTYPE, linkname="/etc")],
        [member("link", type=tarfile.SYMTYPE, linkname=".."), member("link/x", b"1")],
        [member("hard", type=tarfile.LNKTYPE, linkname="/etc/passwd")],
        [member("device", type=tarfile.CHRTYPE)],
        [member("fifo", type=tarfile.FIFOTYPE)],
        [member("a", b"1"), member("a", b"2")],
        [member("a", b"1"), member("a/b", b"2")],
        [member("/".join("a" * 60), b"1")],
        [member("a/b", b"1"), member("a", b"2")],
        [member("big", bytes(3_000_000)), member("big", b"2")],
        [member("x" * 70_000, b"1")],
        [member("sparse", b"1", pax_headers={"GNU.sparse.size": "1"})],
    ],
)
def test_hostile_members_are_refused(
    bad: list[tuple[tarfile.TarInfo, bytes]], tmp_path: Path, target: Path
) -> None:
    archive = tmp_path / "a"
    promise = hostile(archive, *bad)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(Tampered):
        extract(archive, promise, target)
    assert sorted(os.listdir(tmp_path)) == before


def test_decompression_bombs_are_stopped_early(tmp_path: Path, target: Path) -> None:
    archive = tmp_path / "a"
    promise = hostile(archive, member("zeros", bytes(50_000_000)))
    with pytest.raises(Tampered, match="more than its manifest says"):
        extract(archive, replace(promise, content_bytes=1000), target)
    many = hostile(archive, *[member(f"f{n}") for n in range(50)])
    with pytest.raises(Tampered, match="more than its manifest says"):
        extract(archive, replace(many, members=10, content_bytes=10**9), target)


@pytest.mark.parametrize("damage", ["truncate", "append", "flip", "empty"])
def test_damage_is_found(damage: str, tmp_path: Path, target: Path) -> None:
    archive = tmp_path / "a"
    promise = hostile(archive, member("x", os.urandom(100_000)))
    data = bytearray(archive.read_bytes())
    if damage == "truncate":
        data = data[: len(data) // 2]
    elif damage == "append":
        data += b"more"
    elif damage == "flip":
        data[len(data) // 2] ^= 1
    else:
        data = bytearray()
    archive.write_bytes(data)
    with pytest.raises(Tampered):
        extract(archive, promise, target)


def test_a_second_pod_needs_no_registry(
    setup: Any, run: Run, version_in: Callable[[Path, str], str], tmp_path: Path
) -> None:
    first = setup.settings(mode="archive")
    second = setup.settings(mode="archive", local=tmp_path / "other-disk")

    async def main() -> None:
        async with Environments(first) as environments:
            lease = await environments.acquire(Spec(requirements=("beta",)))
            assert lease.environment.origin == "built"
            assert first.local is not None
            assert first.local in lease.environment.python.parents
            lease.release()
            await (await environments.open()).settled()
        names = sorted(os.listdir(setup.store("archives")))
        assert names == [f"{lease.environment.digest}.json", f"{lease.environment.digest}.tar.zst"]
        for wheel in setup.base.index.folder.iterdir():
            wheel.unlink()  # and thereby empty the registry
        async with Environments(second) as environments:
            found = await environments.acquire(Spec(requirements=("beta",)))
            assert found.environment.origin == "archive"
            assert found.environment.digest == lease.environment.digest
            assert tmp_path / "other-disk" in found.environment.python.parents
            assert version_in(found.environment.python, "beta") == "1.0"
            bytecode = list((tmp_path / "other-disk").rglob("*.pyc"))
            assert bytecode
            found.release()

    run(main())


def test_bytecode_stays_valid_through_an_archive(setup: Any, run: Run, tmp_path: Path) -> None:
    """Modification times are restored, so Python accepts the unpacked bytecode."""
    settings = [setup.settings(mode="archive", local=tmp_path / name) for name in ("one", "two")]

    async def main() -> None:
        for each in settings:
            async with Environments(each) as environments:
                with await environments.acquire(Spec(requirements=("alpha",))) as found:
                    await (await environments.open()).settled()
                    argv = [str(found.python), "-v", "-c", "import alpha"]
                    process = await asyncio.create_subprocess_exec(
                        *argv, stderr=asyncio.subprocess.PIPE
                    )
                    _, words = await process.communicate()
        assert b"alpha/__pycache__/__init__" in words
        assert b"matches" in next(line for line in words.splitlines() if b"alpha" in line)

    run(main())


def test_an_archive_is_unpacked_without_a_process(
    setup: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Therefore unpacking is faster than a build, even with packages in uv's cache."""
    modules = {f"m{n}.py": f"def f{n}(x):\n    return [x, {n}]\n" * 40 for n in range(200)}
    setup.base.index.add("many", "1.0", files=modules)
    started: list[str] = []
    shared, other = tmp_path / "shared", tmp_path / "other"
    shared.mkdir()
    other.mkdir()

    async def start(name: str, volume: Path) -> str:
        settings = setup.settings(mode="archive", local=tmp_path / name, volume=volume)
        async with Environments(settings) as environments:
            await (await environments.open()).settled()
            started.clear()
            with await environments.acquire(Spec(requirements=("many",))) as found:
                await (await environments.open()).settled()
                return found.origin

    async def main() -> None:
        await start("warm", shared)
        shutil.rmtree(tmp_path / "warm" / "flashpool" / "envs")
        assert await start("warm", other) == "built"
        assert started
        for number in range(3):
            assert await start(f"fresh{number}", shared) == "archive"
            assert started == []

    for module in (uv_cli, bytecode):
        real = module.run

        async def noted(argv: Any, _real: Any = real, **options: Any) -> Any:
            started.append(" ".join(argv))
            return await _real(argv, **options)

        monkeypatch.setattr(module, "run", noted)
    run(main())


@pytest.mark.parametrize("kind", ["long", "wide"])
def test_paths_and_files_of_any_length(kind: str, tmp_path: Path, target: Path) -> None:
    """Long paths use separate records, and large files are written in pieces."""
    name = "/".join(["d" * 60] * 4) + "/\u00e9" if kind == "long" else "big"
    data = b"" if kind == "long" else os.urandom(5_000_001)
    archive = tmp_path / "a"
    extract(archive, hostile(archive, member(name, data, mtime=77), member("next", b"n")), target)
    assert (target / name).read_bytes() == data
    assert (target / name).stat().st_mtime == 77
    assert (target / "next").read_bytes() == b"n"


def _change(told: Path, **changes: Any) -> None:
    told.write_text(json.dumps({**json.loads(told.read_text()), **changes}))


@pytest.mark.parametrize(
    "damage",
    ["archive", "manifest", "signature", "missing", "unsigned", "cut", "facts", "bomb", "nested"],
)
def test_an_environment_with_a_bad_archive_is_rebuilt(
    damage: str, setup: Any, run: Run, version_in: Callable[[Path, str], str], tmp_path: Path
) -> None:
    key = b"key" if damage in {"signature", "unsigned"} else None
    first_key = None if damage == "unsigned" else (b"other" if damage == "signature" else None)
    first = setup.settings(mode="archive", volume_key=first_key)
    second = setup.settings(
        mode="archive", volume_key=key, local=tmp_path / "second", quota_mb=50, room_wait_s=0.1
    )
    third = setup.settings(mode="archive", volume_key=key, local=tmp_path / "third")

    async def main() -> None:
        async with Environments(first) as environments:
            (await environments.acquire(Spec(requirements=("beta",)))).release()
            await (await environments.open()).settled()
        packed = next(setup.store("archives").glob("*.tar.zst"))
        told = next(setup.store("archives").glob("*.json"))
        if damage == "archive":
            packed.write_bytes(packed.read_bytes()[:-100] + os.urandom(100))
        elif damage == "manifest":
            told.write_text(told.read_text().replace('"members"', '"numbers"'))
        elif damage == "missing":
            packed.unlink()
        elif damage == "cut":
            os.truncate(packed, packed.stat().st_size // 2)
        elif damage == "facts":
            facts = json.loads(told.read_text())["facts"]
            _change(told, facts={**facts, "python_version": 3})
        elif damage == "bomb":
            _change(told, content_bytes=1 << 50, members=1 << 40)
        elif damage == "nested":
            told.write_text("[" * 100_000)
        for settings, origin in ((second, "built"), (third, "archive")):
            async with Environments(settings) as environments:
                with await environments.acquire(Spec(requirements=("beta",))) as found:
                    assert found.origin == origin
                    assert version_in(found.python, "beta") == "1.0"
                    await (await environments.open()).settled()

    run(main())


def test_a_read_only_volume_still_serves_archives(
    setup: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with Environments(setup.settings(mode="archive")) as environments:
            (await environments.acquire(Spec(requirements=("beta",)))).release()
            await (await environments.open()).settled()
        from flashpool.envs.store import locations

        probe = locations._write_problem
        monkeypatch.setattr(
            locations,
            "_write_problem",
            lambda root: "read-only" if setup.volume in root.parents else probe(root),
        )
        before = sorted(path.name for path in setup.store().rglob("*"))
        async with Environments(setup.settings(local=tmp_path / "fresh")) as environments:
            with await environments.acquire(Spec(requirements=("beta",))) as found:
                assert found.origin == "archive"
            with await environments.acquire(Spec(requirements=("alpha==1.0",))) as found:
                assert found.origin == "built"
            await (await environments.open()).settled()
        assert sorted(path.name for path in setup.store().rglob("*")) == before

    run(main())
