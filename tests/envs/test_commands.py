"""The `flashpool envs` commands, without a terminal."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashpool.envs import Environments, ResolutionFailed, Spec, SpecRefused, operations

Run = Callable[[Any], Any]


@pytest.mark.parametrize("mode", ["volume", "archive"])
def test_an_environment_is_built_shown_verified_and_removed_by_commands(
    mode: str, setup: Any, run: Run
) -> None:
    async def main() -> None:
        async with Environments(setup.settings(mode=mode)) as environments:
            built = await operations.build(environments, ["beta"])
            assert built.environment is not None
            digest = built.environment.digest
            failed = await operations.build(environments, ["alpha==7"])
            assert isinstance(failed.failure, ResolutionFailed)

            listed = await operations.listing(environments)
            assert [row.digest for row in listed.environments] == [digest]
            assert listed.environments[0].archived == (mode == "archive")
            assert (listed.store_mode, listed.archived_only) == (mode, ())
            assert listed.total_bytes > listed.environments[0].bytes > 0

            await environments.record_preloads(digest, ["alpha"])
            shown = await operations.show(environments, digest[:6])
            assert shown.facts.lock == ("alpha==2.0", "beta==1.0")
            assert (shown.preloads, shown.sealed) == (("alpha",), True)
            with pytest.raises(SpecRefused, match="no environment begins"):
                await operations.show(environments, "xyz")

            assert [check.problem for check in await operations.verify(environments)] == [""]
            module = next(shown.path.glob("lib/*/site-packages/beta/__init__.py"))
            await asyncio.to_thread(module.write_text, "version = '9.9'\n"[: module.stat().st_size])
            (check,) = await operations.verify(environments, [digest])
            assert "differs from what was sealed" in check.problem

            with await environments.acquire(Spec(requirements=("beta",))):
                assert not await operations.remove(environments, digest)
            assert await operations.remove(environments, digest)
            listed = await operations.listing(environments)
            assert (listed.environments, listed.archived_only) == ((), ())

    run(main())


def test_warm_builds_and_gc_deletes(setup: Any, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "sets.txt"
    file.write_text("# the first\nalpha\nbeta  # both\n\n\nalpha==1.0\n\nnothing-such\n")

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            built = await operations.warm(environments, file)
            assert [each.requirements for each in built] == [
                ("alpha", "beta"),
                ("alpha==1.0",),
                ("nothing-such",),
            ]
            assert [each.failure is None for each in built] == [True, True, False]
            assert (await operations.gc(environments)).digests == ()
            explained = await operations.explain(environments, ["alpha==1.0"])
            assert explained.present == "disk"
            with await environments.acquire(Spec(requirements=("alpha==1.0",))) as kept:
                evicted = await operations.gc(environments, everything=True)
                assert len(evicted.digests) == 1
                assert evicted.wanted == (kept.digest,)

    run(main())


def test_missing_environments_are_reported(setup: Any, run: Run) -> None:
    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            for act in (operations.show, operations.remove):
                with pytest.raises(SpecRefused, match="no environment begins with 'aaaa") as caught:
                    await act(environments, "a" * 40)
                assert "envs ls" in caught.value.advice
            with pytest.raises(SpecRefused, match="no environment begins"):
                await operations.verify(environments, ["a" * 40])

    run(main())


def test_archived_environments_can_be_named(setup: Any, run: Run, tmp_path: Path) -> None:
    """Names are those that `ls` lists."""

    async def main() -> None:
        async with Environments(setup.settings(mode="archive")) as environments:
            built = await operations.build(environments, ["beta"])
            assert built.environment is not None
            digest = built.environment.digest
        second = setup.settings(mode="archive", local=tmp_path / "second")
        async with Environments(second) as environments:
            assert (await operations.listing(environments)).archived_only == (digest,)
            for act in (operations.show(environments, digest[:8]),):
                with pytest.raises(SpecRefused, match="only as an archive") as caught:
                    await act
                assert caught.value.advice
            assert await operations.verify(environments) == ()
            assert await operations.remove(environments, digest[:8])
            assert (await operations.listing(environments)).archived_only == ()

    run(main())


def test_gc_keeps_archives_within_the_quota(setup: Any, run: Run, tmp_path: Path) -> None:
    for number in range(3):
        setup.base.index.add("big", f"1.{number}", files={"data.bin": os.urandom(1_300_000)})

    async def main() -> None:
        async with Environments(setup.settings(mode="archive")) as environments:
            for number in range(3):
                await operations.build(environments, [f"big==1.{number}"])
        second = setup.settings(mode="archive", local=tmp_path / "second", quota_mb=2)
        async with Environments(second) as environments:
            await operations.gc(environments)
            assert len((await operations.listing(environments)).archived_only) == 1

    run(main())
