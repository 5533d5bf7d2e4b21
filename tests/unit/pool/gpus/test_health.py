"""Health figures of GPUs, read with the real pynvml from a scripted NVML library."""

import asyncio
import logging
import time

import pytest

from flashpool.pool.gpus import health as module
from flashpool.pool.gpus.devices import Device, GpuHealth
from flashpool.pool.gpus.health import HealthWatch
from flashpool.pool.gpus.monitor import GpuMonitor
from flashpool.pool.gpus.nvml import XIDS_AT_ONCE, Nvml
from flashpool.pool.gpus.states import GpuPolicy
from flashpool.pool.gpus.table import GpuTable
from support.nvml.scripted import GIB, MIB, NOT_SUPPORTED, UNKNOWN, ScriptedNvml, uuid_of

ALL = "utilization 93, temperature 71, ecc.0 6, ecc.1 1"


async def devices(nvml: Nvml) -> list[Device]:
    return list((await nvml.inventory()).devices)


def test_each_figure_comes_from_the_driver(nvml_here: ScriptedNvml) -> None:
    nvml_here.gpu(0, used=GIB, health=ALL)
    nvml_here.gpu(1, health="temperature 40")

    async def lives() -> None:
        nvml = Nvml()
        watch = HealthWatch(nvml)
        full, sparse = await devices(nvml)
        assert watch.of(full) == GpuHealth()
        await watch.look([full, sparse])
        assert watch.of(full) == GpuHealth(
            used_bytes=GIB,
            utilization_percent=93,
            temperature_c=71,
            ecc_corrected=6,
            ecc_uncorrected=1,
        )
        assert watch.of(sparse) == GpuHealth(used_bytes=4 * MIB, temperature_c=40)
        nvml.close()

    asyncio.run(lives())


def test_a_mig_device_has_its_own_memory_and_its_gpus_other_figures(
    nvml_here: ScriptedNvml,
) -> None:
    whole = nvml_here.gpu(0, mig=2, used=GIB, health=ALL)

    async def lives() -> None:
        nvml = Nvml()
        watch = HealthWatch(nvml)
        parts = await devices(nvml)
        await watch.look(parts)
        nvml_here.xid(0, 31)
        await watch.look(parts)
        assert [part.parent for part in parts] == [whole, whole]
        for part in parts:
            health = watch.of(part)
            assert (health.used_bytes, health.temperature_c) == (MIB, 71)
            assert watch.xids(part) == (1, 31)
        nvml.close()

    asyncio.run(lives())


def test_xid_errors_are_counted_and_logged(
    nvml_here: ScriptedNvml, caplog: pytest.LogCaptureFixture
) -> None:
    nvml_here.gpus(3)
    nvml_here.xid(0, 13)

    async def lives() -> None:
        nvml = Nvml()
        watch = HealthWatch(nvml)
        one, other, _not_ours = await devices(nvml)
        await watch.look([one, other])
        assert watch.xids(one) == (0, None)
        nvml_here.xid(0, 31, 79)
        nvml_here.xid(2, 48)
        nvml_here.xid(1, 43)
        await watch.look([one, other])
        assert watch.xids(one) == (2, 79)
        assert watch.xids(other) == (1, 43)
        await watch.look([one, other])
        assert watch.xids(one) == (2, 79)
        # A storm of errors takes several reads, and no error is lost.
        nvml_here.xid(1, *[31] * (XIDS_AT_ONCE + 5))
        await watch.look([one, other])
        assert watch.xids(other) == (1 + XIDS_AT_ONCE, 31)
        await watch.look([one, other])
        assert watch.xids(other) == (6 + XIDS_AT_ONCE, 31)
        nvml.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(lives())
    assert f"GPU {uuid_of(0)} reports Xid error 79" in caplog.text
    assert "Xid error 48" not in caplog.text


def test_a_driver_without_events_or_figures_is_tolerated(nvml_here: ScriptedNvml) -> None:
    nvml_here.gpu(0, nvmlDeviceRegisterEvents=NOT_SUPPORTED)
    nvml_here.driver(nvmlEventSetWait=UNKNOWN)

    async def lives() -> None:
        nvml = Nvml()
        watch = HealthWatch(nvml)
        found = await devices(nvml)
        await watch.look(found)
        nvml_here.driver(nvmlEventSetCreate=UNKNOWN)
        await watch.look(found)
        assert watch.of(found[0]) == GpuHealth(used_bytes=4 * MIB)
        assert watch.xids(found[0]) == (0, None)
        nvml.close()

    asyncio.run(lives())


def test_figures_of_a_lost_gpu_are_not_kept(nvml_here: ScriptedNvml) -> None:
    nvml_here.gpu(0, health=ALL)

    async def lives() -> None:
        nvml = Nvml()
        watch = HealthWatch(nvml)
        found = await devices(nvml)
        await watch.look(found)
        nvml_here.gpu(0, health=ALL, lost=True)
        await watch.look(found)
        assert watch.of(found[0]) == GpuHealth()
        nvml.close()

    asyncio.run(lives())


def test_the_monitor_reads_until_it_is_closed(
    nvml_here: ScriptedNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    (uuid,) = nvml_here.gpus(1)
    looks: asyncio.Queue[int] = asyncio.Queue()
    look = HealthWatch.look

    async def seen(watch: HealthWatch, devices: list[Device]) -> None:
        await look(watch, devices)
        looks.put_nowait(len(devices))
        if looks.qsize() == 1:
            raise ArithmeticError("nobody foresaw that")

    monkeypatch.setattr(HealthWatch, "look", seen)

    async def lives() -> None:
        gpus = GpuMonitor(GpuTable(GpuPolicy()), time.monotonic)
        await gpus.open({})
        device = gpus.table[uuid].device
        nvml_here.gpu(0, health="temperature 55")
        assert [await looks.get() for _ in range(5)] == [1] * 5
        assert gpus.health.of(device).temperature_c == 55
        await asyncio.wait_for(gpus.close(), 30)

    asyncio.run(asyncio.wait_for(lives(), 60))
