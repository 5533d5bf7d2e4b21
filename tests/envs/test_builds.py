"""Real builds with uv: layers, isolation, sharing, failures, and the facade's contract."""

import asyncio
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashpool.envs import (
    BuildFailed,
    BuildTimeout,
    Environments,
    ResolutionFailed,
    Spec,
    uv_cli,
)
from flashpool.envs.store.eviction import DiskUse
from flashpool.envs.store.preloads import Preloads
from support.interpreters import another_python

Run = Callable[[Any], Any]
VersionIn = Callable[[Path, str], str]


def spec(*requirements: str, **rest: Any) -> Spec:
    return Spec(requirements=requirements, **rest)


def test_a_build_is_followed_by_hits(setup: Any, run: Run, version_in: VersionIn) -> None:
    async def main() -> None:
        lines: list[str] = []
        async with Environments(setup.settings()) as environments:
            first = await environments.acquire(spec("beta"), progress=lines.append)
            assert first.environment.origin == "built"
            assert not first.environment.hit
            assert first.environment.seconds.resolve > 0
            assert first.environment.seconds.build > 0
            assert any("beta==1.0" in line for line in lines)
            assert version_in(first.environment.python, "alpha") == "2.0"
            again = await environments.acquire(spec("Beta "))
            assert again.environment.origin == "memo"
            assert again.environment.python == first.environment.python
            assert first.release()
            assert not first.release()
            with again as environment:
                assert environment.hit
        async with Environments(setup.settings()) as environments:
            other = await environments.acquire(spec("beta"))
            assert other.environment.origin == "disk"
            other.release()

    run(main())


def test_specs_that_resolve_to_the_same_plan_share_an_environment(setup: Any, run: Run) -> None:
    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            digests = set()
            for requirements in (["alpha"], ["alpha==2.0"], ["Alpha>=2"], ["alpha", "alpha<3"]):
                lease = await environments.acquire(spec(*requirements))
                digests.add(lease.environment.digest)
                lease.release()
            other = await environments.acquire(spec("alpha==1.0"))
            other.release()
            assert len(digests) == 1
            assert other.environment.digest not in digests
        assert len(os.listdir(setup.store("envs"))) == 2
        assert len(os.listdir(setup.store("requests"))) == 5

    run(main())


def test_an_empty_spec_gets_the_base(setup: Any, run: Run) -> None:
    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            with await environments.acquire(spec()) as found:
                assert (found.mode, found.python) == ("base", setup.base.python)
        assert os.listdir(setup.store("envs")) == []

    run(main())


def test_a_large_base_package_is_neither_fetched_nor_copied(
    setup: Any, run: Run, version_in: VersionIn
) -> None:
    """The package is removed from the index, so only the base can provide it."""
    index = setup.base.index
    wheel = index.add("bigpkg", "1.0+cu128", files={"weights.bin": os.urandom(30_000_000)})
    setup.base.install("bigpkg")
    wheel.unlink()
    index.add("uses-big", "1.0", "bigpkg>=1.0", "alpha")

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            lease = await environments.acquire(spec("uses-big", "bigpkg==1.0"))
            found = lease.environment
            assert found.mode == "layer"
            assert version_in(found.python, "bigpkg") == "1.0+cu128"
            assert version_in(found.python, "uses_big") == "1.0"
            explained = await environments.explain(spec("uses-big"))
            where = {decision.name: decision.where for decision in explained.decisions}
            assert where == {"alpha": "layer", "bigpkg": "base", "uses-big": "layer"}
            lease.release()
        assert DiskUse().add(setup.volume)[0] < 3_000_000

    run(main())


def test_a_pin_that_conflicts_with_the_base_is_honoured(
    setup: Any, run: Run, version_in: VersionIn
) -> None:
    setup.base.install("alpha==1.0")

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            with await environments.acquire(spec("alpha==2.0")) as found:
                assert found.mode == "isolated"
                assert version_in(found.python, "alpha") == "2.0"
            with await environments.acquire(spec("beta")) as found:
                assert found.mode == "layer"
                assert version_in(found.python, "alpha") == "1.0"
            with await environments.acquire(spec("alpha")) as found:
                assert found.mode == "base"
            explained = await environments.explain(spec("alpha==2.0"))
            assert explained.mode == "isolated"
            assert "the base conflicts" in explained.reason
            assert explained.present == "disk"

    run(main())
    assert version_in(setup.base.python, "alpha") == "1.0"


def test_a_much_older_version_is_never_chosen_silently(
    setup: Any, run: Run, version_in: VersionIn
) -> None:
    index = setup.base.index
    index.add("tool", "1.0")
    index.add("tool", "4.0", "alpha>=2")
    setup.base.install("alpha==1.0")

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            explained = await environments.explain(spec("tool"))
            assert "tool would be 1.0, a major version behind 4.0" in explained.reason
            with await environments.acquire(spec("tool")) as found:
                assert version_in(found.python, "tool") == "4.0"
                assert version_in(found.python, "alpha") == "2.0"

    run(main())


@pytest.mark.parametrize(
    ("asked", "resolutions"),
    [
        (("beta",), ["constrained", "alone"]),
        (("beta==1.0",), ["constrained"]),
        (("beta", "gamma==2.0"), ["free"]),
        (("tool",), ["alone", "constrained", "free"]),
    ],
)
def test_only_the_resolutions_that_are_needed_run(
    asked: tuple[str, ...],
    resolutions: list[str],
    setup: Any,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The resolution without the base doubles the work, so it runs only for conflicts."""
    index = setup.base.index
    index.add("tool", "1.0")
    index.add("tool", "4.0", "alpha>=2")
    index.add("gamma", "1.0")
    index.add("gamma", "2.0")
    setup.base.install("alpha==1.0", "gamma==1.0")
    seen: list[str] = []
    real = uv_cli.Uv.resolve

    async def counted(self: uv_cli.Uv, *args: Any, **options: Any) -> str:
        alone = not options.get("dependencies", True)
        seen.append("constrained" if options.get("constraints") else "alone" if alone else "free")
        return await real(self, *args, **options)

    monkeypatch.setattr(uv_cli.Uv, "resolve", counted)

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            (await environments.acquire(spec(*asked))).release()

    run(main())
    assert sorted(seen) == sorted(resolutions)


def test_inconsistent_metadata_of_the_base_is_tolerated(
    setup: Any, run: Run, version_in: VersionIn
) -> None:
    """Otherwise every request on such an image would be a conflict."""
    setup.base.index.add("gamma", "1.0", "alpha>=1")
    setup.base.install("gamma", "alpha==1.0")
    setup.base.index.add("gamma", "2.0")
    metadata = next(setup.base.root.glob("lib/*/site-packages/gamma-*/METADATA"))
    metadata.write_text(metadata.read_text().replace("alpha>=1", "alpha>=7"))
    setup.base.index.add("delta", "1.0", "gamma<2")

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            with await environments.acquire(spec("delta")) as found:
                assert found.mode == "layer"
                assert version_in(found.python, "gamma") == "1.0"

    run(main())


def test_runtime_packages_are_pinned_unless_a_request_conflicts(
    setup: Any, run: Run, version_in: VersionIn
) -> None:
    index = setup.base.index
    index.add("cloudpickle", "3.0")
    index.add("cloudpickle", "2.0")
    index.add("old-fashioned", "1.0", "cloudpickle<3")
    settings = setup.settings(runtime_pins=("cloudpickle==3.0",))

    async def main() -> None:
        async with Environments(settings) as environments:
            for asked, expected in (
                ("alpha", "3.0"),
                ("cloudpickle<3", "2.0"),
                ("old-fashioned", "2.0"),
            ):
                with await environments.acquire(spec(asked)) as found:
                    assert version_in(found.python, "cloudpickle") == expected

    run(main())


def test_failures_are_explained_and_remembered(setup: Any, run: Run) -> None:
    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            for _ in range(2):
                with pytest.raises(ResolutionFailed, match="alpha>=9") as caught:
                    await environments.acquire(spec("beta", "alpha>=9"))
                assert "alpha>=9" in caught.value.requirement
            setup.base.index.add("alpha", "9.0")
            with pytest.raises(ResolutionFailed):
                await environments.acquire(spec("beta", "alpha>=9"))
            with await environments.acquire(spec("beta", "alpha>=9", refresh=True)) as found:
                assert found.origin == "built"

    run(main())


def test_a_package_that_does_not_build_is_an_error(setup: Any, run: Run, tmp_path: Path) -> None:
    source = tmp_path / "broken"
    source.mkdir()
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]\n'
        '[project]\nname = "broken"\nversion = "1"\n'
    )
    (source / "own.py").write_text(
        "def build_wheel(*a, **k):\n    raise SystemExit('the answer is no')\n"
        "def prepare_metadata_for_build_wheel(*a, **k):\n    raise SystemExit('the answer is no')\n"
    )

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            with pytest.raises(BuildFailed, match="the answer is no") as caught:
                await environments.acquire(spec(f"broken @ {source.as_uri()}"))
            assert caught.value.requirement.startswith("broken @ file:")

    run(main())


def test_local_sources_are_built_and_see_no_secrets(
    setup: Any, run: Run, version_in: VersionIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", "top-secret")
    monkeypatch.setenv("FLASHPOOL_TOKEN", "top-secret")
    wheel = setup.base.index.add("local", "1.0")
    source = tmp_path / "local"
    source.mkdir()
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]\n'
        '[project]\nname = "local"\nversion = "1.0"\n'
    )
    seen = tmp_path / "seen"
    (source / "own.py").write_text(
        "import os, shutil\n"
        "def build_wheel(folder, *a):\n"
        f"    open({str(seen)!r}, 'w').write(repr(dict(os.environ)))\n"
        f"    return os.path.basename(shutil.copy({str(wheel)!r}, folder))\n"
    )

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            with await environments.acquire(spec(f"local @ {source.as_uri()}")) as first:
                assert version_in(first.python, "local") == "1.0"
            (source / "more.py").write_text("changed = True\n")
            with await environments.acquire(
                spec(f"local @ {source.as_uri()}", refresh=True)
            ) as second:
                assert second.digest != first.digest

    run(main())
    assert "top-secret" not in seen.read_text()


def test_many_concurrent_requests_build_once(setup: Any, run: Run) -> None:
    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            asked = [
                environments.acquire(spec(*order))
                for order in ([["alpha", "beta"], ["beta", "alpha"], ["BETA", "alpha"]] * 7)
            ]
            leases = await asyncio.gather(*asked)
            assert len({lease.environment.digest for lease in leases}) == 1
            held = (await environments.open()).open_store.table.held()
            assert held == {leases[0].environment.digest: 21} or max(held.values()) >= 21
            for lease in leases:
                lease.release()
            await (await environments.open()).settled()
            assert set((await environments.open()).open_store.table.held().values()) == {0}
        assert len(os.listdir(setup.store("envs"))) == 1

    run(main())


def _slow_source(tmp_path: Path) -> tuple[Path, Path]:
    """Create a source whose build reports that it began, then waits for ever."""
    source = tmp_path / "slow"
    source.mkdir()
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]\n'
        '[project]\nname = "slow"\nversion = "1.0"\n'
    )
    began = tmp_path / "began"
    (source / "own.py").write_text(
        "import os, time\n"
        "def build_wheel(*a, **k):\n"
        f"    open({str(began)!r}, 'w').write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
    )
    return source, began


async def _until(condition: Callable[[], Any], limit_s: float = 40) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_cancelled_build_leaves_nothing(setup: Any, run: Run, tmp_path: Path) -> None:
    source, began = _slow_source(tmp_path)

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            slow = spec(f"slow @ {source.as_uri()}")
            stays = asyncio.ensure_future(environments.acquire(slow))
            leaves = asyncio.ensure_future(environments.acquire(slow))
            await _until(lambda: began.exists() and began.read_text())
            pid = int(began.read_text())
            leaves.cancel()
            await asyncio.wait({leaves})
            assert _alive(pid), "one waiter left, the other still waits"
            stays.cancel()
            await asyncio.wait({stays})
            await _until(lambda: not _alive(pid))
            await _until(lambda: not os.listdir(setup.store("scratch")))
            await _until(lambda: not os.listdir(setup.store("claims")))

    run(main())


def test_deadlines_and_limits_are_enforced(setup: Any, run: Run, tmp_path: Path) -> None:
    source, _ = _slow_source(tmp_path)

    async def main() -> None:
        slow = spec(f"slow @ {source.as_uri()}")
        async with Environments(setup.settings()) as environments:
            with pytest.raises(BuildTimeout) as caught:
                await environments.acquire(slow, deadline=time.monotonic() + 0.5)
            assert (caught.value.error_type, caught.value.phase) == ("Timeout", "build")
        async with Environments(setup.settings(build_timeout_s=0.5)) as environments:
            with pytest.raises(BuildTimeout, match="FLASHPOOL_BUILD_TIMEOUT_S"):
                await environments.acquire(slow)

    run(main())


def test_closing_ends_running_builds(setup: Any, run: Run, tmp_path: Path) -> None:
    source, began = _slow_source(tmp_path)

    async def main() -> None:
        environments = Environments(setup.settings())
        asked = asyncio.ensure_future(environments.acquire(spec(f"slow @ {source.as_uri()}")))
        await _until(lambda: began.exists() and began.read_text())
        await environments.close()
        with pytest.raises(Exception, match="cancelled"):
            await asked
        assert os.listdir(setup.store("holders")) == []

    run(main())


def test_the_loop_is_never_blocked(setup: Any, run: Run) -> None:
    """Ticks on the loop continue while an environment is built, finished and inspected."""
    setup.base.index.add("many", "1.0", files={f"m{n}.py": "x = 1\n" for n in range(1500)})
    gaps: list[tuple[float, float]] = []

    async def tick() -> None:
        """Record how long the loop was blocked, and the CPU time of its thread in that time."""
        last, spent = time.monotonic(), time.thread_time()
        while True:
            await asyncio.sleep(0.001)
            gaps.append((time.monotonic() - last, time.thread_time() - spent))
            last, spent = time.monotonic(), time.thread_time()

    async def main() -> None:
        ticking = asyncio.ensure_future(tick())
        async with Environments(setup.settings()) as environments:
            (await environments.acquire(spec("many"))).release()
            await (await environments.open()).settled()
        ticking.cancel()

    run(main())
    elsewhere, computed = (max(each) for each in zip(*gaps, strict=True))
    assert computed < 0.25
    # Threads share the interpreter lock and the cores, so this bound detects only a hang.
    assert elsewhere < 5


def _version_of(python: Path) -> str:
    code = "import sys, alpha; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True).stdout.strip()


def test_another_version_of_python_can_be_requested(
    setup: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, path = another_python()
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            with await environments.acquire(spec("alpha", python_version=other)) as found:
                assert _version_of(found.python) == other
                assert found.mode == "isolated"
            with pytest.raises(Exception, match=r"Python 3\.77 is not installed here"):
                await environments.acquire(spec("alpha", python_version="3.77"))

    run(main())


def test_preloads_are_shared(setup: Any, run: Run) -> None:
    digest = "a" * 40

    async def main() -> None:
        async with Environments(setup.settings()) as one, Environments(setup.settings()) as two:
            assert await one.preloads(digest) == Preloads()
            names = ["numpy", "../x", "numpy", "pandas.core", "a b"]
            await one.record_preloads(digest, names, ["pandas", ".."])
            noted = Preloads(modules=("numpy", "pandas.core"), entries=("pandas",))
            assert await two.preloads(digest) == noted

    run(main())


def test_a_memo_hit_is_cheap(setup: Any, run: Run) -> None:
    """A memo hit does not wait for anything, so it cannot touch the disk."""

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            asked = spec("alpha")
            (await environments.acquire(asked)).release()
            with pytest.raises(StopIteration) as ended:
                environments.acquire(asked).send(None)
            lease = ended.value.value
            assert lease.environment.origin == "memo"
            lease.release()

    run(main())
