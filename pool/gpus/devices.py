"""Facts about GPUs as plain data: `Device`, `Inventory`, `Reading`, `GpuHealth`.

`nvml` fills them in, `visible_devices` chooses among them, `table` decides with them; `GpuHealth` is
for operators only.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU, or a MIG device, which is a part of a GPU."""

    uuid: str
    #: NVML's number, in the order of the PCI bus; a MIG device has the number of the whole GPU.
    index: int
    name: str
    #: None if the driver cannot say: such a device is never judged by its memory.
    memory_bytes: int | None
    #: Bytes in use when it was listed.
    used_bytes: int = 0
    #: The UUID of the GPU that this device is a part of.
    parent: str | None = None
    #: Its number among the parts of its GPU.
    part: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """All devices that NVML lists, or the reason for an empty list."""

    devices: tuple[Device, ...] = ()
    #: Why the list is empty; empty if there are devices.
    reason: str = ""
    #: Whether devices should exist, so that a later query may find them.
    ill: bool = False
    driver: str = ""
    #: Devices that exist but cannot be read, each with the reason.
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One reading of a device."""

    uuid: str
    #: None: the device could not be read, because of ``failure``.
    used_bytes: int | None
    failure: str = ""
    #: Processes on the device and the bytes of each; None if the driver was not asked, or does not
    #: know. In a container, processes may be missing, or have ids of another namespace.
    processes: tuple[tuple[int, int | None], ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuHealth:
    """Health of a device, for operators. None: the driver does not report the figure."""

    #: Bytes in use on the device itself.
    used_bytes: int | None = None
    #: These describe the whole GPU: MIG devices have none of their own.
    utilization_percent: int | None = None
    temperature_c: int | None = None
    #: ECC errors since the driver was loaded.
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
