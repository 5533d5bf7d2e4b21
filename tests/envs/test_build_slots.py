"""The limit of concurrent builds: how many, which one is next, and progress of those waiting."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from flashpool.envs import Environments, Spec, uv_cli
from flashpool.envs.concurrency.build_slots import BuildSlots

Run = Callable[[Any], Any]


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_started_builds_go_first_and_all_learn_their_place(run: Run) -> None:
    build_slots = BuildSlots(1)
    order: list[str] = []
    heard: dict[str, list[str]] = {}

    async def build(name: str, gate: asyncio.Event, *, begun: bool = False) -> None:
        lines = heard.setdefault(name, [])
        async with build_slots.place(lambda line: lines.append(line.split(", ")[1]), begun=begun):
            order.append(name)
            await gate.wait()

    async def main() -> None:
        gate = asyncio.Event()
        tasks = [asyncio.create_task(build(name, gate)) for name in ("a", "b", "c")]
        await _settle()
        tasks.append(asyncio.create_task(build("d", gate, begun=True)))
        await _settle()
        gate.set()
        await asyncio.gather(*tasks)

    run(main())
    assert order == ["a", "d", "b", "c"]
    assert heard["a"] == []
    assert heard["c"] == [f"{ahead} more before this one" for ahead in (1, 2, 1, 0)]
    assert "1 of 1 free" in repr(build_slots)


@pytest.mark.parametrize("when", ["waiting", "called", "passed over"])
def test_a_build_slot_is_never_lost(when: str, run: Run) -> None:
    """A cancelled build returns its slot, even one that it was just given."""
    build_slots = BuildSlots(1)

    async def hold(gate: asyncio.Event) -> None:
        async with build_slots.place(lambda _line: None):
            await gate.wait()

    async def main() -> None:
        gate = asyncio.Event()
        first, second, third = [asyncio.create_task(hold(gate)) for _ in range(3)]
        await _settle()
        if when == "waiting":
            second.cancel()
            await _settle()
        if when == "passed over":
            second.cancel()
        first.cancel()
        if when == "called":
            for _ in range(100):
                if len(build_slots._queue) < 2:
                    break
                await asyncio.sleep(0)
            second.cancel()
        await _settle()
        gate.set()
        await asyncio.wait_for(third, 30)
        await asyncio.gather(first, second, return_exceptions=True)

    run(main())
    assert "1 of 1 free, 0 waiting" in repr(build_slots)


def test_concurrent_builds_are_limited(
    setup: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        setup.base.index.add(f"one{number}", "1.0")
    now, most = 0, 0
    for name in ("resolve", "install"):
        real = getattr(uv_cli.Uv, name)

        async def counted(*args: Any, _real: Any = real, **options: Any) -> Any:
            nonlocal now, most
            now += 1
            most = max(most, now)
            try:
                return await _real(*args, **options)
            finally:
                now -= 1

        monkeypatch.setattr(uv_cli.Uv, name, counted)
    said: list[str] = []

    async def main() -> None:
        async with Environments(setup.settings(builds=2)) as environments:
            asked = [
                environments.acquire(Spec(requirements=(f"one{number}",)), progress=said.append)
                for number in range(5)
            ]
            for lease in await asyncio.gather(*asked):
                assert lease.environment.origin == "built"
                lease.release()

    run(main())
    assert most == 2
    assert any("Waiting to be built: 2 under way, 2 more before this one" in line for line in said)
