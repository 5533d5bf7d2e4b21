"""A process that was stopped for longer than others wait for its heartbeat."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

from flashpool.envs import Environments, Spec

Run = Callable[[Any], Any]
#: Longer than the test, so that no heartbeat is written by itself.
SETTINGS = {"heartbeat_s": 600.0, "hold_s": 600.0}


def test_after_a_pause_leases_are_renewed_before_use(setup: Any, run: Run) -> None:
    spec = Spec(requirements=("alpha",))

    async def main() -> None:
        async with Environments(setup.settings(**SETTINGS)) as environments:
            with await environments.acquire(spec) as built:
                pass
            provider = await environments.open()
            await provider.settled()
            store, holders = provider.open_store.store, provider.open_store.holders
            heartbeat = holders.folder / holders.me
            mark = store.leases(built.digest) / holders.me

            def lose() -> None:
                """Another process takes this one for dead after a pause, and removes its files."""
                heartbeat.unlink()
                mark.unlink()
                holders._beaten_at -= 10_000

            lose()
            with await environments.acquire(spec) as found:
                assert found.hit
                assert heartbeat.exists()
                assert mark.exists()
            lose()
            shutil.rmtree(store.environment(built.digest))
            with await environments.acquire(spec) as found:
                assert found.origin == "built"
                assert found.python.exists()
                assert mark.exists()

    run(main())
