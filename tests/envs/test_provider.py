"""What goes wrong between a build and its lease: evictions in between, archives, a quota."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashpool.envs import Environments, QuotaReached, Spec, StoreUnavailable

Run = Callable[[Any], Any]
VersionIn = Callable[[Path, str], str]
_MB = 1 << 20


def spec(*requirements: str, **rest: Any) -> Spec:
    return Spec(requirements=requirements, **rest)


def test_what_is_evicted_before_it_is_finished_keeps_no_claim(
    setup: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other processes would wait for it as long as this one lives."""

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            provider = await environments.open()
            real = provider.shelf.unfinished

            def unfinished(digest: str) -> bool:
                found = real(digest)
                provider.ground.evictor.evict(digest)
                return found

            monkeypatch.setattr(type(provider.shelf), "unfinished", lambda _, d: unfinished(d))
            with pytest.raises(StoreUnavailable, match="evicted as fast as it was built"):
                await environments.acquire(spec("alpha"))
            await provider.settled()
            assert os.listdir(setup.store("claims")) == []

    run(main())


def test_an_environment_deleted_by_somebody_is_noticed(
    setup: Any, run: Run, version_in: VersionIn
) -> None:
    """By hand, or by a pod that took this one for dead: the next call has it again."""

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            first = await environments.acquire(spec("alpha"))
            provider = await environments.open()
            await provider.settled()
            root = first.environment.root
            assert root is not None
            await asyncio.to_thread(root.rename, root.with_name("elsewhere"))
            await asyncio.to_thread(provider.ground.beat)
            with await environments.acquire(spec("alpha")) as found:
                assert (found.origin, found.root) == ("built", root)
                assert version_in(found.python, "alpha") == "2.0"
            first.release()
            await provider.settled()
            assert set(provider.ground.table.held().values()) == {0}

    run(main())


def _packed(setup: Any, run: Run, number: int) -> None:
    """Archives of so many environments of two megabytes, made without a quota."""
    for each in range(number):
        setup.base.index.add("big", f"1.{each}", files={"data.bin": os.urandom(2 * _MB)})

    async def main() -> None:
        async with Environments(setup.settings(mode="archive")) as environments:
            for each in range(number):
                (await environments.acquire(spec(f"big==1.{each}"))).release()
            await (await environments.open()).settled()

    run(main())


def test_a_quota_holds_for_what_comes_from_archives(
    setup: Any, run: Run, version_in: VersionIn, tmp_path: Path
) -> None:
    _packed(setup, run, 4)
    settings = setup.settings(mode="archive", local=tmp_path / "second", quota_mb=5)

    async def main() -> None:
        async with Environments(settings) as environments:
            measure = (await environments.open()).ground.evictor.measure
            for each in (0, 1, 2, 3, 0):
                with await environments.acquire(spec(f"big==1.{each}")) as found:
                    assert found.origin == "archive"
                    assert version_in(found.python, "big") == f"1.{each}"
                assert (await asyncio.to_thread(measure)).total <= 5 * _MB

    run(main())


def test_archives_give_way_to_what_is_leased(setup: Any, run: Run, tmp_path: Path) -> None:
    _packed(setup, run, 3)
    settings = setup.settings(
        mode="archive", local=tmp_path / "second", quota_mb=5, room_wait_s=0.3
    )

    async def main() -> None:
        async with Environments(settings) as environments:
            leases = [await environments.acquire(spec(f"big==1.{each}")) for each in (0, 1)]
            with pytest.raises(QuotaReached, match="in use fill the quota of 5 MB"):
                await environments.acquire(spec("big==1.2"))
            for lease in leases:
                assert lease.environment.python.exists()
                lease.release()
            with await environments.acquire(spec("big==1.2")) as found:
                assert found.origin == "archive"

    run(main())
