"""Shared builds: they continue without waiters, and yield their slot to builds that have some."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from flashpool.envs.concurrency.build_slots import BuildSlots
from flashpool.envs.concurrency.single_flight import Report, SingleFlight
from support.waiting import until


class Builds:
    """Flights that join a second flight, which needs a build slot, as environments do."""

    def __init__(self, places: int, *, goes_on: bool = True) -> None:
        self.slots = BuildSlots(places)
        self.asked: SingleFlight[str] = SingleFlight(goes_on=goes_on, left=self.slots.make_way)
        self.built: SingleFlight[str] = SingleFlight()
        self.gates: dict[str, asyncio.Event] = {}
        self.running: list[str] = []
        self.ended: list[str] = []

    def ask(self, key: str, digest: str | None = None) -> "asyncio.Task[str]":
        joining = self.asked.join(key, lambda _: self._asked(digest or key))
        return asyncio.ensure_future(joining)

    async def _asked(self, digest: str) -> str:
        return await self.built.join(digest, lambda report: self._built(digest, report))

    async def _built(self, digest: str, report: Report) -> str:
        async with self.slots.place(report):
            self.running.append(digest)
            try:
                await self.gates.setdefault(digest, asyncio.Event()).wait()
                return f"built {digest}"
            finally:
                self.running.remove(digest)
                self.ended.append(digest)

    async def runs(self, *digests: str) -> None:
        await until(lambda: self.running == list(digests))

    def finish(self, digest: str) -> None:
        self.gates[digest].set()


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


async def cancelled(task: "asyncio.Task[str]") -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_running_build_continues_and_serves_the_next_request() -> None:
    async def main() -> None:
        builds = Builds(1)
        impatient = builds.ask("a")
        await builds.runs("a")
        await cancelled(impatient)
        again = builds.ask("a")
        await asyncio.sleep(0)
        assert builds.running == ["a"]
        assert not builds.ended
        builds.finish("a")
        assert await again == "built a"

    run(main())


def test_a_running_build_finishes_without_waiters() -> None:
    async def main() -> None:
        builds = Builds(1)
        impatient = builds.ask("a")
        await builds.runs("a")
        await cancelled(impatient)
        builds.finish("a")
        await until(lambda: builds.ended == ["a"] and not builds.asked._landing)

    run(main())


def test_with_goes_on_false_a_build_ends_with_its_last_waiter() -> None:
    async def main() -> None:
        builds = Builds(1, goes_on=False)
        first, second = builds.ask("a"), builds.ask("a")
        await builds.runs("a")
        await cancelled(first)
        assert builds.running == ["a"]
        await cancelled(second)
        await until(lambda: builds.ended == ["a"])

    run(main())


def test_a_queued_build_ends_with_its_last_waiter() -> None:
    async def main() -> None:
        builds = Builds(1)
        held, waiting = builds.ask("a"), builds.ask("b")
        await until(lambda: builds.slots._queue)
        await cancelled(waiting)
        await until(lambda: not builds.slots._queue)
        builds.finish("a")
        assert await held == "built a"
        assert builds.ended == ["a"]

    run(main())


@pytest.mark.parametrize("first", ["the waiter leaves", "the other comes"])
def test_a_build_without_waiters_yields_its_slot_to_one_with_waiters(first: str) -> None:
    async def main() -> None:
        builds = Builds(1)
        impatient = builds.ask("a")
        await builds.runs("a")
        if first == "the waiter leaves":
            await cancelled(impatient)
            other = builds.ask("b")
        else:
            other = builds.ask("b")
            await until(lambda: builds.slots._queue)
            await cancelled(impatient)
        await builds.runs("b")
        assert builds.ended == ["a"]
        # A new request for "a" queues, and starts its build from scratch.
        again = builds.ask("a")
        builds.finish("b")
        assert await other == "built b"
        await builds.runs("a")
        builds.finish("a")
        assert await again == "built a"

    run(main())


def test_only_as_many_builds_yield_as_others_wait() -> None:
    async def main() -> None:
        builds = Builds(3)
        patient, *impatient = [builds.ask(key) for key in ("a", "b", "c")]
        await builds.runs("a", "b", "c")
        for one in impatient:
            await cancelled(one)
        other = builds.ask("d")
        await until(lambda: "d" in builds.running)
        assert len(builds.ended) == 1
        for key in ("a", "b", "c", "d"):
            builds.finish(key) if key in builds.gates else None
        assert [await patient, await other] == ["built a", "built d"]
        await until(lambda: not builds.running)

    run(main())


def test_a_build_for_two_requests_continues_while_either_waits() -> None:
    async def main() -> None:
        builds = Builds(1)
        impatient, patient = builds.ask("one", "a"), builds.ask("other", "a")
        await builds.runs("a")
        await cancelled(impatient)
        third = builds.ask("b")
        await until(lambda: builds.slots._queue)
        assert builds.running == ["a"]
        builds.finish("a")
        assert await patient == "built a"
        await builds.runs("b")
        builds.finish("b")
        assert await third == "built b"

    run(main())


def test_closing_ends_a_build_without_waiters() -> None:
    async def main() -> None:
        builds = Builds(1)
        impatient = builds.ask("a")
        await builds.runs("a")
        await cancelled(impatient)
        await builds.asked.close()
        await until(lambda: builds.ended == ["a"])

    run(main())
