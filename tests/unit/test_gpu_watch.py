"""The watch over the GPUs: it looks when told, and ends when told."""

import asyncio
import time

from flashpool.pool.gpu_states import GpuPolicy, GpuState
from flashpool.pool.gpu_watch import GpuWatch
from flashpool.pool.gpus import GpuTable
from support.nvml.scripted import GIB, ScriptedNvml


def watch() -> GpuWatch:
    table = GpuTable(GpuPolicy(settle_s=0.05, retry_s=0.01, retry_most_s=0.02))
    return GpuWatch(table, time.monotonic)


def test_it_ends_although_it_is_told_to_look_at_the_same_moment(nvml_here: ScriptedNvml) -> None:
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


def test_what_a_device_goes_through_is_told(nvml_here: ScriptedNvml) -> None:
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
        assert "every GPU is quarantined" in gpus.unfit
        changed.clear()
        nvml_here.free_stuck(uuid)
        await asyncio.wait_for(changed.wait(), 30)
        assert gpus.unfit == ""
        await gpus.close()

    asyncio.run(lives())
    assert told == [GpuState.QUARANTINED, GpuState.FREE]
