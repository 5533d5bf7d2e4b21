"""A store that disappears, is full or fails temporarily: when it is opened again."""

import asyncio
import contextlib
import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashpool.envs import DiskFull, Environments, Spec, uv_cli
from flashpool.envs.acquiring import acquisition, store_cache
from flashpool.envs.acquiring.open_store import OpenStore
from flashpool.envs.store.lease_files import Marks
from flashpool.envs.store.liveness import Liveness

Run = Callable[[Any], Any]
VersionIn = Callable[[Path, str], str]


def spec(*requirements: str, **rest: Any) -> Spec:
    return Spec(requirements=requirements, **rest)


def pulses() -> int:
    return sum(thread.name == "flashpool-envs-heartbeat" for thread in threading.enumerate())


def test_a_shortage_is_waited_for_and_opens_the_store_once(
    setup: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lack of descriptors or processes is retried, without a new thread each time."""
    monkeypatch.setattr(acquisition, "_SHORT_PAUSE_S", 0.01)
    resolve, tries = uv_cli.Uv.resolve, 0

    async def refuse(*args: Any, **options: Any) -> str:
        nonlocal tries
        tries += 1
        if tries <= 3:
            raise OSError(errno.EMFILE, "Too many open files")
        return await resolve(*args, **options)

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            await environments.open()
            told: list[str] = []
            with monkeypatch.context() as patch:
                patch.setattr(uv_cli.Uv, "resolve", refuse)
                with await environments.acquire(spec("alpha"), progress=told.append) as found:
                    assert found.origin == "built"
            assert tries > 3
            assert any("Waiting: the server is short of open files" in line for line in told)
            assert pulses() == 1
        assert pulses() == 0

    run(main())


def test_a_volume_that_comes_and_goes_is_opened_once_each_time(
    setup: Any, run: Run, version_in: VersionIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_cache, "_LOOK_AGAIN_S", 0.0)

    async def main() -> None:
        async with Environments(setup.settings(hold_s=0.0)) as environments:
            held = await environments.acquire(spec("alpha"))
            await (await environments.open()).settled()
            aside = setup.volume.with_name("aside")
            for version in ("1.0", "2.0"):
                setup.volume.rename(aside)
                setup.volume.write_text("no directory any more")
                setup.base.index.add("other", version)
                asked = spec(f"other=={version}")
                with await environments.acquire(asked) as found:
                    assert setup.local in found.python.parents
                    assert version_in(found.python, "other") == version
                with await environments.acquire(asked) as found:
                    assert found.hit
                setup.volume.unlink()
                aside.rename(setup.volume)
                with await environments.acquire(spec("alpha")) as found:
                    assert found.root == held.environment.root
                assert pulses() == 2
            held.release()
            assert (await environments.open()).open_store.places.mode == "volume"
        assert pulses() == 0
        for root in (setup.volume, setup.local):
            for name in ("scratch", "holders", "claims"):
                assert list((root / "flashpool" / name).iterdir()) == []

    run(main())


@pytest.mark.parametrize("step", ["opening", "evicting"])
def test_every_failure_of_the_disk_is_typed(
    step: str, setup: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if neither the heartbeat nor the announcement of an eviction can be written."""

    def full(*_args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def resolve(*_args: Any, **_options: Any) -> str:
        return full() or ""

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            if step == "evicting":
                (await environments.acquire(spec("beta"))).release()
                await (await environments.open()).settled()
            with monkeypatch.context() as patch:
                if step == "evicting":
                    patch.setattr(uv_cli.Uv, "resolve", resolve)
                    patch.setattr(Marks, "may_evict", full)
                else:
                    patch.setattr(Liveness, "beat", full)
                with pytest.raises(DiskFull) as caught:
                    await environments.acquire(spec("alpha"))
            assert "what to do" in str(caught.value)
            (await environments.acquire(spec("alpha"))).release()

    run(main())


def test_a_volume_that_is_gone_is_noticed_by_the_heartbeat(
    setup: Any, run: Run, version_in: VersionIn
) -> None:
    """The leased environment is gone; the next call gets a copy on local disk."""

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            (await environments.acquire(spec("alpha"))).release()
            open_store = (await environments.open()).open_store
            await (await environments.open()).settled()
            aside = setup.volume.rename(setup.volume.with_name("aside"))
            setup.volume.write_text("no directory any more")
            with contextlib.suppress(OSError):
                open_store.beat()
            with await environments.acquire(spec("alpha")) as found:
                assert setup.local in found.python.parents
                assert version_in(found.python, "alpha") == "2.0"
            setup.volume.unlink()
            aside.rename(setup.volume)

    run(main())


def test_a_volume_that_stays_away_is_logged_once(
    setup: Any, run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not with every heartbeat, but again at the next loss."""
    beats = 0
    working = range(5, 10)

    def beat(_ground: OpenStore) -> None:
        nonlocal beats
        beats += 1
        if beats not in working:
            raise OSError(errno.EIO, "Input/output error")

    async def main() -> None:
        async with Environments(setup.settings(heartbeat_s=0.05)) as environments:
            await environments.open()
            monkeypatch.setattr(OpenStore, "beat", beat)
            deadline = time.monotonic() + 20
            while beats < 15:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)

    run(main())
    assert sum("no heartbeat in" in record.message for record in caplog.records) == 2


def test_a_lease_is_on_the_very_copy_that_was_found(setup: Any, run: Run) -> None:
    """The volume is lost, unnoticed by a heartbeat, while local disk has the same environment."""

    async def main() -> None:
        settings = setup.settings(heartbeat_s=60.0, stale_s=600.0, claim_stale_s=600.0)
        async with Environments(settings) as environments:
            first = await environments.acquire(spec("alpha"))
            await (await environments.open()).settled()
            aside = setup.volume.rename(setup.volume.with_name("aside"))
            setup.volume.write_text("no directory any more")
            with await environments.acquire(spec("alpha", refresh=True)) as found:
                assert found.digest == first.environment.digest
                assert setup.local in found.python.parents
                await (await environments.open()).settled()
                open_store = (await environments.open()).open_store
                assert open_store.places.mode == "local"
                assert open_store.table.held() == {found.digest: 1}
            assert open_store.table.held() == {found.digest: 0}
            first.release()
            setup.volume.unlink()
            aside.rename(setup.volume)

    run(main())
