"""Several processes on one volume: builders that die, are stopped, or run out of disk space."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flashpool.envs import DiskFull, Environments, QuotaReached, Spec
from flashpool.envs.store.liveness import parse_holder
from flashpool.envs.store.manifest import check_sizes, read_facts
from support import wants
from support.waiting import until

Run = Callable[[Any], Any]
VersionIn = Callable[[Path, str], str]


def spec(*requirements: str, **rest: Any) -> Spec:
    return Spec(requirements=requirements, **rest)


def results(child: "subprocess.Popen[str]") -> list[dict[str, str]]:
    out, err = child.communicate(timeout=50)
    assert child.returncode == 0, err
    return [json.loads(line) for line in out.splitlines()]


def wait_for(condition: Callable[[], Any], limit_s: float = 30) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def entries(path: Path) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []


def all_published_are_complete(setup: Any) -> None:
    for digest in entries(setup.store("envs")):
        path = setup.store("envs", digest)
        facts = read_facts(path)
        assert facts is not None
        assert facts.digest == digest
        check_sizes(path)


def processes_in(path: Path) -> list[str]:
    """Command lines that mention a path."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(path) in line and "child_acquire" not in line:
                found.append(line)
    return found


@pytest.mark.parametrize("mode", ["volume", "archive"])
def test_racing_processes_build_once(
    mode: str, setup: Any, version_in: VersionIn, tmp_path: Path
) -> None:
    """Several processes, twenty requests each, one new set: one build."""
    setup.base.index.add("many", "1.0", "beta", files={f"m{n}.py": "x = 1\n" for n in range(300)})
    children = [
        setup.child("many", times=20, mode=mode, local=str(tmp_path / f"disk{n}")) for n in range(4)
    ]
    rows = [results(child) for child in children]
    assert [len(each) for each in rows] == [20] * 4
    assert len({row["digest"] for each in rows for row in each}) == 1
    builders = [each for each in rows if each[0]["origin"] == "built"]
    assert len(builders) == 1
    for each in rows:
        assert version_in(Path(each[0]["python"]), "many") == "1.0"
    assert entries(setup.store("scratch")) == []
    assert entries(setup.store("claims")) == []
    assert entries(setup.store("holders")) == []


#: Steps of a build, around which the builder kills itself.
STEPS = (
    "store.claims:Claims.take:before",
    "store.claims:Claims.take:after",
    "building.spare_virtualenvs:make_virtualenv:after",
    "uv_cli:Uv.install_cached:before",
    "uv_cli:Uv.install_cached:after",
    "building.speculation:SpeculativeBuild.take:before",
    "building.speculation:SpeculativeBuild.take:after",
    "store.manifest:list_files:after",
    "store.manifest:write_facts:before",
    "store.manifest:write_facts:after",
    "store.layout:Store.publish:before",
    "store.layout:Store.publish:after",
    "store.lease_files:Marks.put:after",
    "resolving.memo:StoredMemo.put:before",
    "resolving.memo:StoredMemo.put:after",
    "store.manifest:seal:before",
    "store.manifest:seal:after",
)
#: Steps of a build without a draft: under a quota, space is freed first.
PLAIN_STEPS = (
    "uv_cli:Uv.install:before",
    "uv_cli:Uv.install:after",
    "store.manifest:list_files:after",
    "store.layout:Store.publish:before",
)
ARCHIVE_STEPS = (
    "archives.archive:_write:after",
    "archives.archive:write_json:before",
    "archives.archive:write_json:after",
)


def others_come_right(setup: Any, version_in: VersionIn, **order: Any) -> None:
    """After a death: incomplete results are not used, and the next builder works and cleans up."""
    all_published_are_complete(setup)
    rows = results(setup.child("many", times=3, **order))
    assert len(rows) == 3
    assert version_in(Path(rows[0]["python"]), "many") == "1.0"
    all_published_are_complete(setup)
    wait_for(lambda: not processes_in(setup.volume))
    assert entries(setup.store("scratch")) == []
    assert entries(setup.store("claims")) == []
    assert entries(setup.store("holders")) == []


@pytest.mark.parametrize("step", STEPS)
def test_a_builder_may_die_at_any_step(step: str, setup: Any, version_in: VersionIn) -> None:
    setup.base.index.add("many", "1.0", "beta", files={"m.py": "x = 1\n"})
    victim = setup.child("many", die_at=step)
    victim.communicate(timeout=50)
    assert victim.returncode == -signal.SIGKILL
    others_come_right(setup, version_in)


@pytest.mark.parametrize("step", PLAIN_STEPS)
def test_a_builder_without_a_draft_may_die_at_any_step(
    step: str, setup: Any, version_in: VersionIn
) -> None:
    setup.base.index.add("many", "1.0", "beta", files={"m.py": "x = 1\n"})
    victim = setup.child("many", die_at=step, quota_mb=1000)
    victim.communicate(timeout=50)
    assert victim.returncode == -signal.SIGKILL
    others_come_right(setup, version_in, quota_mb=1000)


@pytest.mark.parametrize("step", ARCHIVE_STEPS)
def test_a_packer_may_die_at_any_step(
    step: str, setup: Any, version_in: VersionIn, tmp_path: Path
) -> None:
    setup.base.index.add("many", "1.0", "beta", files={"m.py": "x = 1\n"})
    victim = setup.child("many", die_at=step, mode="archive")
    victim.communicate(timeout=50)
    assert victim.returncode == -signal.SIGKILL
    others_come_right(setup, version_in, mode="archive", local=str(tmp_path / "other"))
    assert len(entries(setup.store("archives"))) == 2


def _stages(setup: Any) -> dict[str, Callable[[], bool]]:
    """Stages of a uv run that are visible from outside."""

    def scratch(*parts: str) -> list[Path]:
        return list(setup.store("scratch").glob("/".join(("*", *parts))))

    return {
        "resolving": lambda: bool(scratch("requirements.in")),
        "venv": lambda: bool(scratch("env")),
        "installing": lambda: bool(scratch("env", "lib", "*", "site-packages", "many")),
    }


@pytest.mark.parametrize("stage", ["resolving", "venv", "installing"])
def test_a_builder_may_be_killed_while_uv_runs(
    stage: str, setup: Any, version_in: VersionIn
) -> None:
    """Other processes wait for the build; uv dies with its builder."""
    setup.base.index.add("many", "1.0", "beta", files={f"m{n}.py": "x = 1\n" for n in range(2000)})
    victim = setup.child("many")
    reached = _stages(setup)[stage]
    wait_for(lambda: reached() or victim.poll() is not None)
    waiting = setup.child("many", times=3)
    victim.kill()
    victim.communicate()
    assert len(results(waiting)) == 3
    others_come_right(setup, version_in)


def _builder_of(setup: Any) -> int | None:
    """Return the process named by the only claim."""
    for name in entries(setup.store("claims")):
        try:
            owner = parse_holder(os.readlink(setup.store("claims", name)))
        except OSError:
            continue
        return owner.pid if owner else None
    return None


def _installed(setup: Any) -> int:
    """Return the modules in the builder's scratch directory."""
    pattern = "*/env/lib/*/site-packages/many"
    return sum(len(entries(path)) for path in setup.store("scratch").glob(pattern))


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_the_builder_is_killed_again_and_again(setup: Any, version_in: VersionIn) -> None:
    """Two processes race for one spec, ten times; the builder dies half-way."""
    files = {f"m{n}.py": "x = 1\n" for n in range(500)}
    setup.base.index.add("many", "1.0", "beta", files=files)
    for number in range(10):
        racers = [setup.child("many", times=10) for _ in range(2)]
        wait_for(lambda: _builder_of(setup))
        builder = _builder_of(setup)
        wait_for(lambda n=number: _installed(setup) > 50 * n or entries(setup.store("envs")))
        victim = next((each for each in racers if each.pid == builder), racers[0])
        survivor = racers[1 - racers.index(victim)]
        victim.kill()
        victim.communicate()
        rows = results(survivor)
        assert len(rows) == 10
        assert len({row["digest"] for row in rows}) == 1
        assert version_in(Path(rows[0]["python"]), "many") == "1.0"
        all_published_are_complete(setup)
        wait_for(lambda: not processes_in(setup.volume))
        assert entries(setup.store("claims")) == []
        subprocess.run(["rm", "-rf", str(setup.store())], check=True)


def test_a_stopped_builder_is_overtaken(setup: Any, version_in: VersionIn) -> None:
    setup.base.index.add("many", "1.0", "beta", files={f"m{n}.py": "x = 1\n" for n in range(800)})
    stopped = setup.child("many")
    wait_for(lambda: entries(setup.store("claims")))
    os.kill(stopped.pid, signal.SIGSTOP)
    published = bool(entries(setup.store("envs")))
    row = results(setup.child("many", claim_stale_s=1.0))[0]
    assert row["origin"] == "built" or published
    assert version_in(Path(row["python"]), "many") == "1.0"
    os.kill(stopped.pid, signal.SIGCONT)
    late = results(stopped)[0]
    assert late["digest"] == row["digest"]
    all_published_are_complete(setup)
    assert entries(setup.store("scratch")) == []


def test_a_leased_environment_of_another_process_stays(setup: Any, run: Run) -> None:
    holder = subprocess_with_lease(setup, "alpha")

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            provider = await environments.open()
            evicted = await provider.evict_unused()
            assert evicted.digests == ()
            assert len(evicted.wanted) == 1
            os.killpg(holder.pid, signal.SIGKILL)
            holder.communicate()
            evicted = await provider.evict_unused()
            assert len(evicted.digests) == 1

    run(main())


def subprocess_with_lease(setup: Any, *requirements: str) -> "subprocess.Popen[str]":
    child: subprocess.Popen[str] = setup.child(*requirements, hold=True)
    assert child.stdout is not None
    assert json.loads(child.stdout.readline())["origin"] == "built"
    return child


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: next(path.glob("lib/*/site-packages/beta/__init__.py")).write_text(""),
        lambda path: os.truncate(next(path.glob("lib/*/site-packages/beta/native.so")), 5_000),
        lambda path: (path / "pyvenv.cfg").write_text(""),
        lambda path: (path / "bin" / "python").unlink(),
        lambda path: (path / "flashpool.json").unlink(),
        lambda path: (path / "flashpool.json").write_text("{"),
    ],
)
def test_a_damaged_environment_is_rebuilt(
    damage: Callable[[Path], Any], setup: Any, run: Run, version_in: VersionIn
) -> None:
    setup.base.index.add("beta", "1.0", "alpha>=1.0", files={"native.so": bytes(10_000)})

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            with await environments.acquire(spec("beta")) as found:
                root = found.root
            await (await environments.open()).settled()
        assert root is not None
        damage(root)
        async with Environments(setup.settings()) as environments:
            with await environments.acquire(spec("beta")) as found:
                assert found.origin == "built"
                assert found.root == root
                assert version_in(found.python, "beta") == "1.0"
        async with Environments(setup.settings()) as environments:
            with await environments.acquire(spec("beta")) as found:
                assert found.origin == "disk"

    run(main())


def test_a_tampered_environment_is_rebuilt(setup: Any, run: Run, version_in: VersionIn) -> None:
    settings = setup.settings(volume_key=b"key")

    async def main() -> None:
        async with Environments(settings) as environments:
            with await environments.acquire(spec("beta")) as found:
                root = found.root
        async with Environments(settings) as environments:
            with await environments.acquire(spec("beta")) as found:
                assert found.origin == "disk"
                assert version_in(found.python, "beta") == "1.0"
        module = next(root.glob("lib/*/site-packages/beta/__init__.py"))
        size = module.stat().st_size
        module.unlink()
        module.write_text("version = 'bad'\n".ljust(size)[:size])
        async with Environments(settings) as environments:
            with await environments.acquire(spec("beta")) as found:
                assert found.origin == "built"
                assert version_in(found.python, "beta") == "1.0"

    run(main())


def test_bytecode_written_by_python_does_not_break_a_seal(setup: Any, run: Run) -> None:
    """Whatever the settings, bytecode that calls would write is compiled before."""
    settings = setup.settings(volume_key=b"key", compile_bytecode=False)

    async def main() -> None:
        for origin in ("built", "disk"):
            async with Environments(settings) as environments:
                with await environments.acquire(spec("beta")) as found:
                    assert found.origin == origin
                    argv = [str(found.python), "-I", "-c", "import alpha, beta"]
                    await asyncio.to_thread(subprocess.run, argv, check=True)

    run(main())


async def _most(measure: Callable[[], int], seen: list[int]) -> None:
    while True:
        seen.append(await asyncio.to_thread(measure))
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("sizes", "quota_mb"),
    [((2_000_000,) * 10, 12), ((500_000, 500_000, 500_000, 4_000_000) * 2, 20)],
)
@pytest.mark.slow
def test_a_quota_holds_with_environments_used_in_turn(
    sizes: tuple[int, ...], quota_mb: int, setup: Any, run: Run, version_in: VersionIn
) -> None:
    """At every instant: bytecode, which follows after publication, is not to pass it either.

    Nor are files that the cache has, too: uv writes both before anybody can look.
    """
    code = "".join(f"def f{n}(x):\n    return [x, {n}]\n" for n in range(300))
    modules: dict[str, str | bytes] = {f"m{n}.py": code for n in range(30)}
    for number, size in enumerate(sizes):
        files = {**modules, "data.bin": os.urandom(size)}
        setup.base.index.add("big", f"1.{number}", files=files)
    turns = [*range(len(sizes)), 0, 1]

    async def main() -> None:
        seen: list[int] = []
        async with Environments(setup.settings(quota_mb=quota_mb)) as environments:
            provider = await environments.open()
            measure = provider.open_store.evictor.measure
            watching = asyncio.create_task(_most(lambda: measure().total, seen))
            for number in turns:
                with await environments.acquire(spec(f"big==1.{number}")) as found:
                    assert version_in(found.python, "big") == f"1.{number}"
                    await provider.settled()
                    assert found.python.exists()
            watching.cancel()
        assert max(seen) <= quota_mb * 1024 * 1024
        assert len(entries(setup.store("envs"))) > 1

    run(main())


def test_a_quota_never_evicts_leased_environments(
    setup: Any, run: Run, version_in: VersionIn
) -> None:
    for number in range(4):
        setup.base.index.add("big", f"1.{number}", files={"data.bin": os.urandom(2_000_000)})
    settings = setup.settings(quota_mb=5, room_wait_s=0.3)

    async def main() -> None:
        pressed: list[tuple[str, ...]] = []
        async with Environments(settings) as environments:
            provider = await environments.open()
            provider.on_pressure(pressed.append)
            leases = [await environments.acquire(spec(f"big==1.{number}")) for number in range(2)]
            said: list[str] = []
            with pytest.raises(QuotaReached, match="in use fill the quota of 5 MB") as caught:
                await environments.acquire(spec("big==1.2"), progress=said.append)
            assert caught.value.retryable
            assert any("waiting until one is released" in line for line in said)
            assert pressed
            await provider.settled()
            assert provider.open_store.evictor.measure().total <= 5 * 1024 * 1024
            for number, lease in enumerate(leases):
                assert version_in(lease.environment.python, "big") == f"1.{number}"
                lease.release()
            with await environments.acquire(spec("big==1.3")) as found:
                assert version_in(found.python, "big") == "1.3"
                await provider.settled()
            assert provider.open_store.evictor.measure().total <= 5 * 1024 * 1024

    run(main())


def test_a_released_lease_frees_space_for_waiting_builds(setup: Any, run: Run) -> None:
    for number in range(3):
        setup.base.index.add("big", f"1.{number}", files={"data.bin": os.urandom(2_000_000)})

    async def main() -> None:
        async with Environments(setup.settings(quota_mb=5, room_wait_s=20)) as environments:
            provider = await environments.open()
            first = await environments.acquire(spec("big==1.0"))
            second = await environments.acquire(spec("big==1.1"))

            def let_go(_digests: tuple[str, ...]) -> None:
                if not first.released:
                    first.release()

            provider.on_pressure(let_go)
            with await environments.acquire(spec("big==1.2")) as found:
                assert found.origin == "built"
            second.release()
            await provider.settled()

    run(main())


def test_an_environment_larger_than_the_quota_is_refused(setup: Any, run: Run) -> None:
    setup.base.index.add("big", "1.0", files={"data.bin": os.urandom(7_000_000)})

    async def main() -> None:
        settings = setup.settings(quota_mb=5, room_wait_s=0.1)
        async with Environments(settings) as environments:
            with pytest.raises(QuotaReached, match="more than the quota of 5 MB for all"):
                await environments.acquire(spec("big"))
            with await environments.acquire(spec("alpha")) as found:
                assert found.origin == "built"

    run(main())


def mount(*argv: str) -> None:
    wants.program("mount")
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    mounted = subprocess.run(["mount", *argv], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.strip()}")


def unmount(path: Path) -> None:
    """Unmount lazily, as when a network volume is lost: open files stay usable."""
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    path = tmp_path / "small"
    path.mkdir()
    mount("-t", "tmpfs", "-o", "size=24m", "tmpfs", str(path))
    yield path
    if os.path.ismount(path):
        unmount(path)


def test_a_full_disk_first_evicts_and_then_raises(
    small_disk: Path, setup: Any, run: Run, version_in: VersionIn
) -> None:
    for number in range(3):
        setup.base.index.add("big", f"1.{number}", files={"data.bin": os.urandom(5_000_000)})
    setup.base.index.add("huge", "1.0", files={"data.bin": os.urandom(30_000_000)})
    settings = setup.settings(volume=small_disk, local=small_disk / "local")

    async def main() -> None:
        async with Environments(settings) as environments:
            provider = await environments.open()
            for number in (0, 1, 2, 0):
                with await environments.acquire(spec(f"big==1.{number}")) as found:
                    assert version_in(found.python, "big") == f"1.{number}"
            with pytest.raises(DiskFull) as caught:
                await environments.acquire(spec("huge"))
            assert caught.value.error_type == "EnvironmentError"
            assert "enlarge the volume" in str(caught.value)
            with await environments.acquire(spec("alpha")) as found:
                assert version_in(found.python, "alpha") == "2.0"
            await provider.settled()
        assert entries(small_disk / "flashpool" / "scratch") == []

    run(main())


def test_a_full_volume_is_replaced_by_local_disk(
    small_disk: Path, setup: Any, run: Run, version_in: VersionIn, caplog: pytest.LogCaptureFixture
) -> None:
    """Builds without space on the volume go to local disk; existing environments stay."""
    setup.base.index.add("huge", "1.0", files={"data.bin": os.urandom(30_000_000)})

    async def main() -> None:
        async with Environments(setup.settings(volume=small_disk)) as environments:
            kept = await environments.acquire(spec("alpha"))
            said: list[str] = []
            with await environments.acquire(spec("huge"), progress=said.append) as found:
                assert setup.local in found.python.parents
                assert version_in(found.python, "huge") == "1.0"
            assert "The volume is full: building on local disk" in said
            with await environments.acquire(spec("huge")) as found:
                assert found.hit
            with await environments.acquire(spec("beta")) as found:
                assert small_disk in found.python.parents
            assert small_disk in kept.environment.python.parents
            kept.release()

    run(main())
    assert any("is full: using local disk instead" in record.message for record in caplog.records)


def test_a_disk_that_others_fill_and_free_is_survived(
    small_disk: Path, setup: Any, run: Run
) -> None:
    """When not even a heartbeat fits, the error is typed; with space again, builds work."""
    ballast = small_disk / "ballast"

    def fill() -> None:
        with ballast.open("wb") as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
                    file.flush()
            except OSError:
                pass

    settings = setup.settings(volume=small_disk, local=small_disk / "local")

    async def main() -> None:
        async with Environments(settings) as environments:
            with await environments.acquire(spec("alpha")):
                await (await environments.open()).settled()
                await asyncio.to_thread(fill)
                with pytest.raises(DiskFull):
                    await environments.acquire(spec("beta"))
                ballast.unlink()
            with await environments.acquire(spec("beta", refresh=True)) as found:
                assert found.origin == "built"

    try:
        run(main())
    finally:
        ballast.unlink(missing_ok=True)


def removed(folder: Path) -> bool:
    """Remove a directory to which background work may still write."""
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def test_an_unmounted_volume_is_used_again_when_it_is_back(
    small_disk: Path, setup: Any, run: Run, version_in: VersionIn
) -> None:
    """A lease is held meanwhile; local disk is used until the volume is back."""
    settings = setup.settings(volume=small_disk, hold_s=0.0)
    elsewhere = small_disk.with_name("elsewhere")
    elsewhere.mkdir()

    async def main() -> None:
        async with Environments(settings) as environments:
            held = await environments.acquire(spec("alpha"))
            assert small_disk in held.environment.python.parents
            await asyncio.to_thread(mount, "--bind", str(small_disk), str(elsewhere))
            await asyncio.to_thread(unmount, small_disk)
            await until(lambda: removed(small_disk))
            with await environments.acquire(spec("beta")) as found:
                assert version_in(found.python, "beta") == "1.0"
            held.release()
            await asyncio.to_thread(small_disk.mkdir, exist_ok=True)
            await asyncio.to_thread(mount, "--bind", str(elsewhere), str(small_disk))
        async with Environments(settings) as environments:
            with await environments.acquire(spec("alpha")) as found:
                assert (found.origin, small_disk in found.python.parents) == ("disk", True)
                assert version_in(found.python, "alpha") == "2.0"

    try:
        run(main())
    finally:
        if os.path.ismount(elsewhere):
            unmount(elsewhere)


def test_a_volume_that_turns_read_only_is_replaced_by_local_disk(
    small_disk: Path, setup: Any, run: Run, version_in: VersionIn, caplog: pytest.LogCaptureFixture
) -> None:
    """Kernels do so after a disk error; new environments are then built on local disk."""
    settings = setup.settings(volume=small_disk)

    async def main() -> None:
        async with Environments(settings) as environments:
            with await environments.acquire(spec("alpha")) as held:
                await (await environments.open()).settled()
                await asyncio.to_thread(mount, "-o", "remount,ro", str(small_disk))
                with await environments.acquire(spec("beta")) as found:
                    assert setup.local in found.python.parents
                    assert version_in(found.python, "beta") == "1.0"
                assert version_in(held.python, "alpha") == "2.0"
        async with Environments(settings) as environments:
            with await environments.acquire(spec("alpha")) as found:
                assert version_in(found.python, "alpha") == "2.0"

    run(main())
    assert any("cannot be written" in record.message for record in caplog.records)


def test_a_limit_on_the_size_of_files_is_a_typed_error(setup: Any) -> None:
    """A disk quota of the system has the same effect: uv's write fails within a file."""
    setup.base.index.add("huge", "1.0", files={"data.bin": os.urandom(3_000_000)})
    row = results(setup.child("huge", file_limit=1_000_000))[0]
    assert row["error"] in {"BuildFailed", "DiskFull", "StoreUnavailable", "UvKilled"}
    assert results(setup.child("huge"))[0]["origin"] == "built"
    all_published_are_complete(setup)


def test_a_volume_that_disappears_is_replaced_by_local_disk(
    setup: Any, run: Run, version_in: VersionIn
) -> None:
    async def main() -> None:
        async with Environments(setup.settings(hold_s=0.0)) as environments:
            with await environments.acquire(spec("alpha")) as found:
                assert version_in(found.python, "alpha") == "2.0"
            aside = setup.volume.rename(setup.volume.with_name("aside"))
            setup.volume.write_text("no directory any more")
            with await environments.acquire(spec("beta")) as found:
                assert setup.local in found.python.parents
                assert version_in(found.python, "beta") == "1.0"
            setup.volume.unlink()
            aside.rename(setup.volume)

    run(main())
