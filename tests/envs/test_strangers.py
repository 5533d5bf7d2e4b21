"""A volume with untrusted files: pods start, and environments of calls stay."""

import asyncio
import json
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from flashpool.envs import Environments, Spec
from flashpool.pool._child import trees

Run = Callable[[Coroutine[Any, Any, Any]], Any]

ODD = ("x-²-1-y", "evicting.x-²-1-y", "a-" + "9" * 100 + "-1-b", "\udcff", "a\nb")


def vandalised(volume: Path, digest: str) -> None:
    """A volume with malicious entries in all places that are listed and read."""
    # Created elsewhere and moved, because entries of the trash are removed at once.
    aside = volume.with_name("aside")
    for folder in ("holders", "scratch", "claims", "trash", "requests", f"leases/{digest}"):
        aside.mkdir()
        for number, name in enumerate(ODD):
            path = aside / name
            if number % 2:
                (path / "inner").mkdir(parents=True)
            else:
                path.touch()
        os.mkfifo(aside / "pipe")
        (aside / "zero").symlink_to("/dev/zero")
        if folder == "trash":
            make_deep_tree(aside / "deep")
        for path in list(aside.iterdir()):
            path.rename(volume / folder / path.name)
        aside.rmdir()
    (volume / "claims" / ("b" * 40)).symlink_to("x-²-1-y")
    for path in (volume / "requests").glob("*.json"):
        path.write_text(json.dumps({"digest": digest, "resolved": 10**400}))
    (volume / "preloads" / f"{digest}.json").symlink_to("/dev/zero")


def make_deep_tree(root: Path) -> None:
    root.mkdir()
    handle = os.open(root, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=handle)
        below = os.open("d", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = below
    os.close(handle)


def test_a_link_in_place_of_the_cache_does_not_empty_its_target(
    setup: Any, run: Run, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_text("ours")

    async def main() -> None:
        async with Environments(setup.settings()) as environments:
            provider = await environments.open()
            cache = provider.open_store.uv.cache
            trees.remove(str(cache))
            cache.symlink_to(victim)
            assert await provider.quota.clean_cache()
            assert not cache.is_symlink()

    run(main())
    assert [path.name for path in victim.iterdir()] == ["precious"]


def test_malicious_entries_end_no_heartbeat_and_no_lease(
    setup: Any, run: Run, version_in: Callable[[Path, str], str], caplog: pytest.LogCaptureFixture
) -> None:
    holder = setup.child("beta", hold=True)
    built = json.loads(holder.stdout.readline())
    digest = built["digest"]

    async def main() -> None:
        settings = setup.settings(heartbeat_s=0.05)
        async with Environments(settings) as running:
            lease = await running.acquire(Spec(requirements=("alpha",)))
            vandalised(setup.store(), digest)
            # A process that starts on this volume finds the environment that another one uses.
            async with Environments(settings) as new:
                found = await new.acquire(Spec(requirements=("beta",)))
                assert found.environment.digest == digest
                assert (await new.preloads(digest)).modules == ()
                found.release()
                provider = await new.open()
                assert (await provider.evict_unused()).digests == ()
                assert await asyncio.to_thread(provider.open_store.sweep) == []
            names = [thread.name for thread in threading.enumerate()]
            assert names.count("flashpool-envs-heartbeat") == 1
            (pulse,) = running.pulses()
            assert pulse.problem == ""
            assert pulse.failures == 0
            lease.release()

    try:
        run(main())
        assert version_in(Path(built["python"]), "beta") == "1.0"
        assert os.listdir(setup.store("trash")) == []
        assert "Traceback" not in caplog.text
    finally:
        trees.remove(str(setup.store("trash")))
        os.killpg(holder.pid, signal.SIGKILL)
        holder.communicate()
