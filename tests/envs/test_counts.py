"""Stats of a store: environments stored, built, failed and evicted."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from flashpool.envs import BuildTimeout, Environments, ResolutionFailed, Spec
from flashpool.envs.store.counts import Tally

Run = Callable[[Any], Any]
LIMIT_S = 30.0


def spec(*requirements: str) -> Spec:
    return Spec(requirements=requirements)


async def until(environments: Environments, condition: Callable[[Tally], bool]) -> Tally:
    """Wait until the figures of the only store satisfy the condition; return them."""
    end = time.monotonic() + LIMIT_S
    while True:
        (pulse,) = environments.pulses()
        if condition(pulse.tally):
            return pulse.tally
        assert time.monotonic() < end, pulse.tally
        await asyncio.sleep(0.02)


def test_builds_failures_and_evictions_are_counted(setup: Any, run: Run) -> None:
    async def main() -> None:
        async with Environments(setup.settings(heartbeat_s=0.05)) as environments:
            provider = await environments.open()
            tally = await until(environments, lambda tally: tally.environments is not None)
            assert (tally.environments, tally.bytes, tally.builds) == (0, 0, 0)
            for requirement in ("alpha==1.0", "alpha==2.0", "alpha==1.0"):
                (await environments.acquire(spec(requirement))).release()
            tally = await until(environments, lambda tally: tally.environments == 2)
            assert (tally.builds, tally.failed_builds, tally.evictions) == (2, 0, 0)
            assert tally.bytes
            for _ in range(2):  # the second failure is answered from memory
                with pytest.raises(ResolutionFailed):
                    await environments.acquire(spec("gamma"))
            await provider.settled()
            evicted = await provider.evict_unused()
            assert len(evicted.digests) == 2
            tally = await until(environments, lambda tally: tally.environments == 0)
            assert (tally.builds, tally.failed_builds, tally.evictions) == (2, 1, 2)

    run(main())


def test_environments_built_by_others_are_stored_but_not_counted_as_builds(
    setup: Any, run: Run
) -> None:
    async def main() -> None:
        async with Environments(setup.settings()) as other:
            (await other.acquire(spec("beta"))).release()
            async with Environments(setup.settings(heartbeat_s=0.05)) as environments:
                found = await environments.acquire(spec("beta"))
                tally = await until(environments, lambda tally: tally.environments == 1)
                assert tally.builds == 0
                found.release()

    run(main())


def test_a_build_that_times_out_counts_as_failed(setup: Any, run: Run) -> None:
    async def main() -> None:
        async with Environments(setup.settings(build_timeout_s=0.01)) as environments:
            await environments.open()
            with pytest.raises(BuildTimeout):
                await environments.acquire(spec("beta"))
            (pulse,) = environments.pulses()
            assert (pulse.tally.builds, pulse.tally.failed_builds) == (0, 1)

    run(main())
