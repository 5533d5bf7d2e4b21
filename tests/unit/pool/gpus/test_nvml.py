"""Reading GPUs with the real pynvml from a scripted NVML library."""

import asyncio
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Container, Coroutine, Iterator
from typing import Any

import pytest

from flashpool.pool.gpus import nvml
from flashpool.pool.gpus.devices import Inventory, Reading
from flashpool.pool.gpus.nvml import Nvml, NvmlSilent
from support.nvml import scripted as script
from support.nvml.scripted import GIB, MIB, ScriptedNvml, uuid_of

Ask = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture
def driver(nvml_here: ScriptedNvml) -> ScriptedNvml:
    return nvml_here


@pytest.fixture
def asked() -> Iterator[tuple[Nvml, Ask]]:
    import pynvml  # noqa: F401 - takes a while, which is not the driver's

    loop = asyncio.new_event_loop()
    reader = Nvml(deadline_s=2)
    yield reader, loop.run_until_complete
    reader.close()
    loop.close()


def inventory(asked: tuple[Nvml, Ask]) -> Inventory:
    reader, run = asked
    found: Inventory = run(reader.inventory())
    return found


def read(asked: tuple[Nvml, Ask], *uuids: str, processes: Container[str] = ()) -> list[Reading]:
    reader, run = asked
    found: list[Reading] = run(reader.read(uuids, processes=processes))
    return found


def test_the_inventory_is_in_pci_order(driver: ScriptedNvml, asked: tuple[Nvml, Ask]) -> None:
    uuids = driver.gpus(8)
    found = inventory(asked)
    assert [one.uuid for one in found.devices] == uuids
    assert [one.index for one in found.devices] == list(range(8))
    assert {one.name for one in found.devices} == {"NVIDIA H100 80GB HBM3"}
    assert {one.memory_bytes for one in found.devices} == {80 * GIB}
    assert (found.driver, found.reason, found.ill) == ("580.95.05", "", False)


def test_a_gpu_in_mig_mode_is_listed_as_its_mig_devices(
    driver: ScriptedNvml, asked: tuple[Nvml, Ask]
) -> None:
    whole, cut = driver.gpu(0), driver.gpu(1, mig=3)
    (driver.folder / "devices/1.1").unlink()  # a MIG device was removed, so its number is free
    devices = inventory(asked).devices
    assert [(one.uuid, one.parent, one.part) for one in devices] == [
        (whole, None, None),
        (uuid_of(1, 0), cut, 0),
        (uuid_of(1, 2), cut, 2),
    ]


def test_unexpected_errors_are_reported_as_failures(
    driver: ScriptedNvml, asked: tuple[Nvml, Ask], monkeypatch: pytest.MonkeyPatch
) -> None:
    (uuid,) = driver.gpus(1)
    assert len(inventory(asked).devices) == 1

    def odd(*_: object, **__: object) -> None:
        raise TypeError("odd")

    monkeypatch.setattr(asked[0]._driver, "inventory", odd)
    monkeypatch.setattr(asked[0]._driver, "read", odd)
    found = inventory(asked)
    assert (found.devices, found.reason, found.ill) == ((), "TypeError: odd", True)
    assert read(asked, uuid) == [Reading(uuid=uuid, used_bytes=None, failure="TypeError: odd")]


def test_without_the_library_there_are_no_gpus(
    monkeypatch: pytest.MonkeyPatch, asked: tuple[Nvml, Ask]
) -> None:
    monkeypatch.setattr(nvml, "LIBRARY", "libnvidia-ml-of-nobody.so.1")
    found = inventory(asked)
    assert not found.devices
    assert "there is no NVIDIA driver here" in found.reason
    assert not found.ill


def test_without_a_driver_pynvml_is_not_imported() -> None:
    code = """if True:
        import asyncio, sys, threading
        from flashpool.pool.gpus import nvml
        nvml.LIBRARY = "libnvidia-ml-of-nobody.so.1"
        asyncio.run(nvml.Nvml().inventory())
        print("pynvml" in sys.modules, threading.active_count())
    """
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True
    )
    assert done.stdout.split() == ["False", "1"]


def test_without_a_driver_or_a_gpu_there_are_no_gpus(
    driver: ScriptedNvml, asked: tuple[Nvml, Ask]
) -> None:
    driver.no_driver()
    found = inventory(asked)
    assert (found.devices, found.ill) == ((), False)
    assert "Driver Not Loaded" in found.reason
    driver.driver()
    found = inventory(asked)
    assert (found.reason, found.ill) == ("the NVIDIA driver shows no GPU", False)


def test_errors_of_the_driver_are_reported(driver: ScriptedNvml, asked: tuple[Nvml, Ask]) -> None:
    driver.gpus(2)
    driver.driver(nvmlInit=script.UNKNOWN)
    found = inventory(asked)
    assert (found.devices, found.ill) == ((), True)
    assert "nvmlInit: Unknown Error" in found.reason
    driver.driver()
    assert len(inventory(asked).devices) == 2


def test_a_lost_gpu_is_left_out_and_reported(driver: ScriptedNvml, asked: tuple[Nvml, Ask]) -> None:
    driver.gpus(2)
    driver.gpu(0, lost=True)
    found = inventory(asked)
    assert [one.uuid for one in found.devices] == [uuid_of(1)]
    assert found.unreadable == ("GPU 0: nvmlDeviceGetHandleByIndex: GPU is lost",)
    driver.gpu(1, lost=True)
    assert inventory(asked).ill


def test_memory_and_processes_are_read(driver: ScriptedNvml, asked: tuple[Nvml, Ask]) -> None:
    (uuid,) = driver.gpus(1)
    inventory(asked)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    driver.hold(uuid, GIB, os.getpid())
    driver.hold(uuid, 2 * GIB, child.pid)
    (reading,) = read(asked, uuid, processes={uuid})
    assert reading.used_bytes == 4 * MIB + 3 * GIB
    assert reading.processes == ((os.getpid(), GIB), (child.pid, 2 * GIB))
    child.kill()
    child.communicate()
    assert read(asked, uuid) == [Reading(uuid=uuid, used_bytes=4 * MIB + GIB)]


def test_processes_may_be_unknown(driver: ScriptedNvml, asked: tuple[Nvml, Ask]) -> None:
    uuid = driver.gpu(0, nvmlDeviceGetComputeRunningProcesses=script.NOT_SUPPORTED)
    (reading,) = read(asked, uuid, processes={uuid})
    assert (reading.used_bytes, reading.processes) == (4 * MIB, None)


def test_a_device_without_memory_figures_is_tolerated(
    driver: ScriptedNvml, asked: tuple[Nvml, Ask]
) -> None:
    driver.gpu(0, nvmlDeviceGetMemoryInfo=script.NOT_SUPPORTED)
    (device,) = inventory(asked).devices
    assert device.memory_bytes is None


def test_a_gpu_that_was_lost_can_return(driver: ScriptedNvml, asked: tuple[Nvml, Ask]) -> None:
    first, second = driver.gpus(2)
    inventory(asked)
    driver.gpu(0, lost=True)
    lost, good = read(asked, first, second)
    assert lost.used_bytes is None
    assert lost.failure == "nvmlDeviceGetMemoryInfo: GPU is lost"
    assert good.used_bytes == 4 * MIB
    driver.gpu(0)
    assert read(asked, first)[0].used_bytes == 4 * MIB


def test_a_driver_that_hangs_blocks_nothing(driver: ScriptedNvml, asked: tuple[Nvml, Ask]) -> None:
    (uuid,) = driver.gpus(1)
    inventory(asked)
    driver.driver(hang="nvmlDeviceGetMemoryInfo")
    (reading,) = read(asked, uuid)
    assert reading.failure == "the NVIDIA driver did not answer within 2 s"
    (reading,) = read(asked, uuid)
    assert "has not answered for" in reading.failure, "it stood in line behind the one that hangs"
    driver.driver()

    end = time.monotonic() + 30
    while read(asked, uuid)[0].used_bytes is None:
        assert time.monotonic() < end
        time.sleep(0.005)


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(NvmlSilent("nothing heard", 7)))
    assert (type(error), str(error), error.code) == (NvmlSilent, "nothing heard", 7)
