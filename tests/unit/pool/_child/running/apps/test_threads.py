"""A task that waits for a thread is distinguished from one that can be cancelled."""

import asyncio
import threading
from collections.abc import Awaitable, Callable

import anyio
import anyio.to_thread
import pytest

from flashpool.pool._child.running.apps.threads import is_in_thread


async def in_asyncio(wait: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait)


async def in_anyio(wait: Callable[[], bool]) -> None:
    await anyio.to_thread.run_sync(wait)


@pytest.mark.parametrize("way", [in_asyncio, in_anyio])
def test_a_function_is_detected_while_it_runs_in_a_thread(
    way: Callable[[Callable[[], bool]], Awaitable[None]],
) -> None:
    started, go_on = threading.Event(), threading.Event()

    def work() -> bool:
        started.set()
        return go_on.wait(30)

    async def story() -> None:
        over = asyncio.Event()

        async def outer() -> None:
            await way(work)
            over.set()
            await asyncio.sleep(60)

        task = asyncio.ensure_future(outer())
        assert not is_in_thread(task)
        assert await asyncio.to_thread(started.wait, 30)
        assert is_in_thread(task)
        go_on.set()
        await over.wait()
        assert not is_in_thread(task)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())


def test_a_task_that_waits_for_a_free_thread_has_none_yet() -> None:
    async def story() -> None:
        limiter = anyio.CapacityLimiter(1)
        await limiter.acquire_on_behalf_of("somebody")
        task = asyncio.ensure_future(anyio.to_thread.run_sync(int, limiter=limiter))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not is_in_thread(task)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())
