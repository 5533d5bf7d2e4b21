"""What is begun while the index is asked: right, wrong, unwanted, too much."""

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
    """Content by path, but for what bears the place or the time."""
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
    """Which of uv's two ways to install were gone, and how they ended."""
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


def test_a_right_guess_is_the_build(
    setup: Any, run: Run, installs: list[str], tmp_path: Path
) -> None:
    """The same files as step by step, the same digest, and no second installation."""
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


def test_a_guess_leaves_to_the_base_what_it_has(
    setup: Any, run: Run, installs: list[str], version_in: VersionIn
) -> None:
    setup.base.install("alpha==1.0")
    root = run(built(setup, "beta"))
    assert installs == ["install_cached"]
    assert not list(root.glob("lib/*/site-packages/alpha*"))
    assert version_in(root / "bin" / "python", "alpha") == "1.0"


def test_a_conflict_with_the_base_is_guessed_apart_from_it(
    setup: Any, run: Run, installs: list[str], version_in: VersionIn
) -> None:
    setup.base.install("alpha==1.0")
    root = run(built(setup, "beta", "alpha==2.0"))
    assert installs == ["install_cached"]
    assert version_in(root / "bin" / "python", "alpha") == "2.0"


@pytest.mark.parametrize("lines", [("alpha==1.0",), ("alpha", "beta"), ()])
def test_a_wrong_guess_is_thrown_away(
    lines: tuple[str, ...],
    setup: Any,
    run: Run,
    installs: list[str],
    version_in: VersionIn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An older version, a package too many, one too few: what was resolved gets built."""
    guess = Guess(lines=lines, left_out=(), layered=False)
    monkeypatch.setattr(Resolver, "guess", lambda *_: guess)
    root = run(built(setup, "alpha"))
    assert installs[-1] == "install"
    assert version_in(root / "bin" / "python", "alpha") == "2.0"
    assert not list(root.glob("lib/*/site-packages/beta*"))
    facts = read_facts(root)
    assert facts is not None
    assert facts.lock == ("alpha==2.0",)


def test_what_the_cache_does_not_have_is_fetched(
    setup: Any, run: Run, installs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    guess = Guess(lines=("nowhere",), left_out=(), layered=False)
    monkeypatch.setattr(Resolver, "guess", lambda *_: guess)
    run(built(setup, "alpha"))
    assert installs == ["install_cached failed", "install"]


def test_a_draft_that_fails_half_way_is_thrown_away(
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
def test_nothing_is_begun_where_it_could_cost_more_than_it_spares(
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


def test_nothing_is_begun_for_what_was_built_before(
    setup: Any, run: Run, installs: list[str]
) -> None:
    """The memo is too old to be believed, but not to be told from a new request."""
    run(built(setup, "alpha"))

    async def main() -> None:
        async with Environments(setup.settings(memo_s=0)) as environments:
            found = await environments.acquire(spec("alpha"))
            assert found.environment.origin == "disk"
            found.release()

    run(main())
    assert installs == ["install_cached"]


def test_a_draft_of_what_is_there_already_leaves_nothing(setup: Any, run: Run) -> None:
    """Another spelling, resolved anew: the environment is found, what was begun goes."""

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            (await environments.acquire(spec("alpha"))).release()
            found = await environments.acquire(spec("alpha==2.0"))
            assert found.environment.origin == "memo"
            found.release()
            await (await environments.open()).settled()
            # What is left is the spare virtualenv, and no more than that.
            assert len(os.listdir(setup.store("scratch"))) == 1
        assert os.listdir(setup.store("scratch")) == []

    run(main())


def test_who_leaves_takes_no_draft_from_those_who_wait_for_it(
    setup: Any, run: Run, version_in: VersionIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two spellings, one digest: the first one began the draft, and is cancelled as it is built."""
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


def test_one_process_begins_and_the_others_let_it_finish(
    setup: Any, run: Run, installs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one has resolved long before the first draft is done, and still installs nothing."""
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
    """uv at work for the draft when nobody wants it any more, or when the builder waits for it."""
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

    run(main())  # to the end of its threads, one of which may just have made a directory
    assert os.listdir(setup.store("scratch")) == []
    assert os.listdir(setup.store("claims")) == []


@pytest.mark.parametrize("started", [True, False])
def test_a_command_that_is_cancelled_twice_is_ended_all_the_same(
    started: bool, run: Run, tmp_path: Path
) -> None:
    """A request that leaves cancels its resolutions, and then whoever ran them both does."""

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
        # At once: nobody waits for it after this.
        return len(asyncio.all_tasks())

    (tmp_path / "pid").touch()
    assert run(main()) == 1
