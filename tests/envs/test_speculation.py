"""Drafts: speculative builds during resolution that are right, wrong, unwanted or too large."""

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashpool.envs import BuildFailed, Environments, Spec, process, uv_cli
from flashpool.envs.building import builder
from flashpool.envs.building.metadata import site_packages_of
from flashpool.envs.resolving.plan import Guess
from flashpool.envs.resolving.resolver import Resolver
from flashpool.envs.store.manifest import check_sizes, read_facts
from support.waiting import until

Run = Callable[[Any], Any]
VersionIn = Callable[[Path, str], str]
PLENTY_MB = 100_000
PATH = {"PATH": "/usr/bin:/bin"}


def spec(*requirements: str, **rest: Any) -> Spec:
    return Spec(requirements=requirements, **rest)


def files_of(root: Path) -> dict[str, bytes]:
    """Return file contents by path, without files that contain paths or times."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and not path.is_symlink()
        and path.suffix != ".pyc"
        and not path.name.startswith("flashpool.")
    }


@pytest.fixture
def installs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return which of uv's two install commands ran, and how each ended."""
    seen: list[str] = []
    for name in ("install", "install_cached"):
        real = getattr(uv_cli.Uv, name)

        async def noted(*args: Any, _real: Any = real, _name: str = name, **options: Any) -> None:
            try:
                await _real(*args, **options)
            except BaseException:
                seen.append(f"{_name} failed")
                raise
            seen.append(_name)

        monkeypatch.setattr(uv_cli.Uv, name, noted)
    return seen


async def built(setup: Any, *requirements: str, **changes: Any) -> Path:
    async with Environments(setup.settings(**changes)) as environments:
        lease = await environments.acquire(spec(*requirements))
        assert lease.environment.origin == "built"
        root = lease.environment.root
        lease.release()
        await (await environments.open()).settled()
    check_sizes(root)
    assert os.listdir(setup.store("scratch")) == []
    return root


def test_a_correct_draft_becomes_the_build(
    setup: Any, run: Run, installs: list[str], tmp_path: Path
) -> None:
    """The draft has the files and digest of a plain build, and nothing is installed twice."""
    first = run(built(setup, "beta"))
    assert installs == ["install_cached"]
    setup.volume = tmp_path / "other"
    setup.volume.mkdir()
    second = run(built(setup, "beta", quota_mb=PLENTY_MB))
    assert installs == ["install_cached", "install"]
    assert first.name == second.name
    assert files_of(first) == files_of(second)
    facts, others = read_facts(first), read_facts(second)
    assert facts is not None
    assert others is not None
    assert (facts.lock, facts.files, facts.bytes) == (others.lock, others.files, others.bytes)


def test_a_draft_leaves_out_packages_of_the_base(
    setup: Any, run: Run, installs: list[str], version_in: VersionIn
) -> None:
    setup.base.install("alpha==1.0")
    root = run(built(setup, "beta"))
    assert installs == ["install_cached"]
    assert not list(root.glob("lib/*/site-packages/alpha*"))
    assert version_in(root / "bin" / "python", "alpha") == "1.0"


def test_a_draft_that_conflicts_with_the_base_is_isolated(
    setup: Any, run: Run, installs: list[str], version_in: VersionIn
) -> None:
    setup.base.install("alpha==1.0")
    root = run(built(setup, "beta", "alpha==2.0"))
    assert installs == ["install_cached"]
    assert version_in(root / "bin" / "python", "alpha") == "2.0"


@pytest.mark.parametrize("lines", [("alpha==1.0",), ("alpha", "beta"), ()])
def test_a_wrong_draft_is_discarded(
    lines: tuple[str, ...],
    setup: Any,
    run: Run,
    installs: list[str],
    version_in: VersionIn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With an older version, a package too many or too few, the resolved plan is built."""
    guess = Guess(lines=lines, left_out=(), layered=False)
    monkeypatch.setattr(Resolver, "guess", lambda *_: guess)
    root = run(built(setup, "alpha"))
    assert installs[-1] == "install"
    assert version_in(root / "bin" / "python", "alpha") == "2.0"
    assert not list(root.glob("lib/*/site-packages/beta*"))
    facts = read_facts(root)
    assert facts is not None
    assert facts.lock == ("alpha==2.0",)


def test_packages_missing_from_the_cache_are_fetched(
    setup: Any, run: Run, installs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    guess = Guess(lines=("nowhere",), left_out=(), layered=False)
    monkeypatch.setattr(Resolver, "guess", lambda *_: guess)
    run(built(setup, "alpha"))
    assert installs == ["install_cached failed", "install"]


def test_a_draft_that_fails_half_way_is_discarded(
    setup: Any, run: Run, version_in: VersionIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def half(_self: Any, venv: Path, *_: Any, **__: Any) -> None:
        package = site_packages_of(venv) / "alpha"
        await asyncio.to_thread(package.mkdir)
        raise BuildFailed("in the middle")

    monkeypatch.setattr(uv_cli.Uv, "install_cached", half)
    root = run(built(setup, "alpha"))
    assert version_in(root / "bin" / "python", "alpha") == "2.0"


@pytest.mark.parametrize(
    ("requirements", "options", "changes"),
    [
        (("alpha",), {"refresh": True}, {}),
        (("alpha",), {}, {"quota_mb": PLENTY_MB}),
        (("alpha",), {}, {"min_free_mb": 1 << 40}),
        (("alpha @ {wheel}",), {}, {}),
    ],
)
def test_no_draft_is_started_where_it_might_cost_more_than_it_saves(
    requirements: tuple[str, ...],
    options: dict[str, Any],
    changes: dict[str, Any],
    setup: Any,
    run: Run,
    installs: list[str],
) -> None:
    wheel = next(setup.base.index.folder.glob("alpha-2.0*")).as_uri()
    asked = spec(*(text.format(wheel=wheel) for text in requirements), **options)

    async def main() -> None:
        async with Environments(setup.settings(**changes)) as environments:
            (await environments.acquire(asked)).release()

    run(main())
    assert installs == ["install"]


def test_no_draft_is_started_for_a_spec_built_before(
    setup: Any, run: Run, installs: list[str]
) -> None:
    """An expired memo still shows that the request is not new."""
    run(built(setup, "alpha"))

    async def main() -> None:
        async with Environments(setup.settings(memo_s=0)) as environments:
            found = await environments.acquire(spec("alpha"))
            assert found.environment.origin == "disk"
            found.release()

    run(main())
    assert installs == ["install_cached"]


def test_a_draft_of_an_existing_environment_leaves_nothing(setup: Any, run: Run) -> None:
    """Another spelling is resolved again, finds the environment, and discards its draft."""

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            (await environments.acquire(spec("alpha"))).release()
            found = await environments.acquire(spec("alpha==2.0"))
            assert found.environment.origin == "memo"
            found.release()
            await (await environments.open()).settled()
            # Only the spare virtualenv is left.
            assert len(os.listdir(setup.store("scratch"))) == 1
        assert os.listdir(setup.store("scratch")) == []

    run(main())


def test_a_cancelled_request_keeps_the_draft_for_others_that_wait(
    setup: Any, run: Run, version_in: VersionIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two spellings have one digest; the first starts the draft and is cancelled during it."""
    reached, gate = threading.Event(), threading.Event()
    real = builder.Builder._complete

    def slowly(*args: Any) -> Any:
        reached.set()
        assert gate.wait(30)
        return real(*args)

    monkeypatch.setattr(builder.Builder, "_complete", slowly)

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            provider = await environments.open()
            first = asyncio.create_task(environments.acquire(spec("alpha")))
            assert await asyncio.to_thread(reached.wait, 30)
            second = asyncio.create_task(environments.acquire(spec("alpha==2.0")))
            await until(
                lambda: sum(len(each.waiters) for each in provider._builds._flying.values()) == 2
            )
            first.cancel()
            await asyncio.wait({first})
            gate.set()
            lease = await asyncio.wait_for(second, 30)
            assert version_in(lease.environment.python, "alpha") == "2.0"
            lease.release()
        assert os.listdir(setup.store("scratch")) == []

    run(main())


def test_other_processes_wait_for_the_draft_of_the_first(
    setup: Any, run: Run, installs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second resolves long before the first draft is done, and still installs nothing."""
    counted = uv_cli.Uv.install_cached
    gate = asyncio.Event()

    async def slowly(*args: Any, **options: Any) -> None:
        await gate.wait()
        await counted(*args, **options)

    monkeypatch.setattr(uv_cli.Uv, "install_cached", slowly)

    async def main() -> None:
        said: list[str] = []
        async with (
            Environments(setup.settings()) as one,
            Environments(setup.settings()) as other,
        ):
            await one.open()
            first = asyncio.create_task(one.acquire(spec("beta")))
            await until(lambda: os.listdir(setup.store("claims")))
            second = asyncio.create_task(other.acquire(spec("Beta "), progress=said.append))
            await until(lambda: any("Another process is building" in line for line in said))
            gate.set()
            leases = await asyncio.wait_for(asyncio.gather(first, second), 30)
            assert [lease.environment.origin for lease in leases] == ["built", "disk"]
            for lease in leases:
                lease.release()
            await (await one.open()).settled()
        assert os.listdir(setup.store("claims")) == []

    run(main())
    assert installs == ["install_cached"]


@pytest.mark.parametrize("at", ["install_cached", "take"])
def test_a_cancelled_request_leaves_nothing_of_its_draft(
    at: str, setup: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uv works on the draft when all requests are cancelled, or while the builder waits for it."""
    endless, resolved = asyncio.Event(), asyncio.Event()
    real = uv_cli.Uv.resolve

    async def never(*_: Any, **__: Any) -> None:
        begun.set()
        await endless.wait()

    async def resolve(*args: Any, **options: Any) -> str:
        if at == "install_cached":
            await endless.wait()
        answer = await real(*args, **options)
        resolved.set()
        return answer

    begun = asyncio.Event()
    monkeypatch.setattr(uv_cli.Uv, "install_cached", never)
    monkeypatch.setattr(uv_cli.Uv, "resolve", resolve)

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            asked = asyncio.create_task(environments.acquire(spec("alpha")))
            await asyncio.wait_for(begun.wait(), 30)
            if at == "take":
                await asyncio.wait_for(resolved.wait(), 30)
                await until(lambda: os.listdir(setup.store("claims")))
            asked.cancel()
            await asyncio.wait({asked})
            assert asked.cancelled()

    run(main())
    # A thread that had just created a directory removes it, now or soon.
    asyncio.run(until(lambda: not os.listdir(setup.store("scratch"))))
    assert os.listdir(setup.store("claims")) == []


@pytest.mark.parametrize("started", [True, False])
def test_a_command_that_is_cancelled_twice_is_still_ended(
    started: bool, run: Run, tmp_path: Path
) -> None:
    """A cancelled request cancels its resolutions, and so does the task that ran them both."""

    async def main() -> int:
        asked = asyncio.create_task(
            process.run(["sh", "-c", f"echo $$ > {tmp_path}/pid; sleep 60"], environment=PATH)
        )
        if started:
            await until(lambda: (tmp_path / "pid").read_text().strip())
        else:
            await asyncio.sleep(0)
        while not asked.done():
            asked.cancel()
            await asyncio.sleep(0)
        assert asked.cancelled()
        # At once, because nothing waits for the command after this.
        return len(asyncio.all_tasks())

    (tmp_path / "pid").touch()
    assert run(main()) == 1
