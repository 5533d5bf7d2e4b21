"""The monitor of GPUs: it reads the devices when poked, and stops when closed."""

import asyncio
import time

import pytest

from flashpool.pool.gpus import monitor
from flashpool.pool.gpus.monitor import GpuMonitor
from flashpool.pool.gpus.states import GpuPolicy, GpuState
from flashpool.pool.gpus.table import GpuTable
from support.nvml.scripted import GIB, ScriptedNvml


def watch() -> GpuMonitor:
    table = GpuTable(GpuPolicy(settle_s=0.05, retry_s=0.01, retry_most_s=0.02))
    return GpuMonitor(table, time.monotonic)


def test_close_works_while_a_read_was_just_requested(nvml_here: ScriptedNvml) -> None:
    nvml_here.gpus(1)

    async def lives() -> None:
        for turns in range(6):
            gpus = watch()
            await gpus.open({})
            await asyncio.sleep(0.02)
            gpus.poke()
            for _ in range(turns):
                await asyncio.sleep(0)
            await asyncio.wait_for(gpus.close(), 30)

    asyncio.run(lives())


def test_changes_of_a_devices_state_are_reported(nvml_here: ScriptedNvml) -> None:
    (uuid,) = nvml_here.gpus(1)
    told: list[GpuState] = []

    async def lives() -> None:
        gpus = watch()
        await gpus.open({})
        changed = asyncio.Event()

        def on_change() -> None:
            told.append(gpus.table[uuid].state)
            changed.set()

        gpus.on_change = on_change
        gpus.table.claim(1, 1, 0.0)
        lease = gpus.table.take(1, time.monotonic())
        nvml_here.hold(uuid, GIB)
        gpus.table.release(lease, time.monotonic())
        gpus.poke()
        await asyncio.wait_for(changed.wait(), 30)
        assert "every GPU is quarantined" in gpus.not_ready_reason
        changed.clear()
        nvml_here.free_stuck(uuid)
        await asyncio.wait_for(changed.wait(), 30)
        assert gpus.not_ready_reason == ""
        await gpus.close()

    asyncio.run(lives())
    assert told == [GpuState.QUARANTINED, GpuState.FREE]


def test_the_monitor_survives_exceptions(
    nvml_here: ScriptedNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "FIND_AGAIN_S", 0.01)
    nvml_here.gpus(1)

    async def lives() -> None:
        gpus = watch()
        await gpus.open({})
        told = asyncio.Queue[int]()

        def on_change() -> None:
            told.put_nowait(1)
            raise ArithmeticError("nobody foresaw that")

        gpus.on_change = on_change
        for number in (1, 2, 3):
            gpus.table.claim(number, 1, 0.0)
            gpus.table.release(gpus.table.take(number, time.monotonic()), time.monotonic())
            gpus.poke()
            await told.get()
        await gpus.close()

    asyncio.run(asyncio.wait_for(lives(), 40))
