"""Types of the table of GPUs (`table`): policy, leases, states, evidence."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from .devices import Device

MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPolicy:
    """The table's settings."""

    calls_per_gpu: int = 1
    #: Seconds in which a device's memory must be freed.
    settle_s: float = 10.0
    #: Bytes above the level that count as freed. A left-over CUDA context is larger.
    tolerance_bytes: int = 64 * MIB
    #: Seconds between readings of devices with a free share, to know their level.
    idle_look_s: float = 5.0
    #: Seconds to the first reading of a quarantined device; doubled each time, up to the maximum.
    retry_s: float = 1.0
    retry_most_s: float = 60.0


class GpuState(enum.Enum):
    """Whether a device may be leased."""

    FREE = "free"
    SETTLING = "settling"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLease:
    """The right to these devices, until it is released."""

    id: int
    uuids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Why a device is quarantined."""

    level_bytes: int
    used_bytes: int | None
    #: The driver's list of processes on the device; may be empty in a container.
    processes: tuple[tuple[int, int | None], ...] = ()
    failure: str = ""

    def __str__(self) -> str:
        if self.used_bytes is None:
            return f"it cannot be read: {self.failure}"
        over = (self.used_bytes - self.level_bytes) / MIB
        held = ", ".join(
            f"{pid}" if size is None else f"{pid} ({size / MIB:.0f} MiB)"
            for pid, size in self.processes
        )
        seen = f"processes on it: {held}" if held else "no process is seen on it"
        return f"{over:.0f} MiB more are in use than before its last call; {seen}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A device to be read now, with its processes if they may be evidence."""

    uuid: str
    processes: bool


class GpuChange(enum.Enum):
    """What a reading changed."""

    FREED = "freed"
    QUARANTINED = "quarantined"
    RECOVERED = "recovered"


@dataclass(slots=True)
class Gpu:
    """One device in the table. Other modules may read it, but not write."""

    device: Device
    state: GpuState = GpuState.FREE
    shares_out: int = 0
    #: Bytes in use at the latest reading.
    used_bytes: int = 0
    #: Bytes in use while no call is on the device; None: unknown.
    level_bytes: int | None = None
    #: When the device was last leased or returned: an earlier reading says nothing about now.
    changed_at: float = 0.0
    last_used: float = 0.0
    next_look: float = 0.0
    #: While the device settles: until when its memory must be free.
    deadline: float = 0.0
    looks: int = 0
    evidence: Evidence | None = None
    quarantined_at: float | None = None

    @property
    def uuid(self) -> str:
        """The device's UUID."""
        return self.device.uuid

    @property
    def measurable(self) -> bool:
        """Whether the driver reports the device's used memory."""
        return self.device.memory_bytes is not None

    @property
    def free_bytes(self) -> int:
        """Memory that was not in use at the latest reading."""
        return (self.device.memory_bytes or 0) - self.used_bytes
