"""Keeps the table of GPUs in step with the driver: which devices exist, and their used memory.

    GpuTable -- looks --> GpuMonitor --> Nvml (a thread)
             <-- read ---

One task on the supervisor's loop. It sleeps until the next reading is due, or until `poke` reports
that a device was returned, which is then read at once. On a machine without GPUs there is no task,
no thread, and no import of pynvml.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from .devices import Inventory, Reading
from .health import HealthWatch
from .nvml import Nvml
from .states import Gpu, GpuChange
from .table import GpuTable
from .visible_devices import visible

_log = logging.getLogger(__name__)

#: Seconds before the devices of a faulty driver are listed again, or a failed turn is repeated.
FIND_AGAIN_S: Final = 5.0


class GpuMonitor:
    """Reads devices for the table. All methods belong to the loop's thread."""

    def __init__(self, table: GpuTable, now: Callable[[], float]) -> None:
        self.table = table
        #: Called when devices became free, or were lost: waiting calls may begin, or can never
        #: begin.
        self.on_change: Callable[[], None] = lambda: None
        #: Why there are no devices.
        self.reason = ""
        #: Whether devices should exist but cannot be listed: another machine may serve calls for
        #: them.
        self.ill = False
        #: Whether devices exist, or should exist.
        self.expected = False
        self.driver = ""
        self._now = now
        self._nvml = Nvml()
        #: Health of the devices, for operators.
        self.health = HealthWatch(self._nvml)
        self._poked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def open(self, environ: Mapping[str, str]) -> None:
        """List the devices that this pod may use, and watch them from now on."""
        await self._find(environ)
        if self.expected:
            self._task = asyncio.ensure_future(self._watch(environ))
            self.health.open(lambda: [gpu.device for gpu in self.table])

    async def close(self) -> None:
        """Stop reading devices."""
        # Before Python 3.12, `wait_for` swallows a cancellation that arrives together with the
        # event.
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.health.close()
        self._nvml.close()

    def poke(self) -> None:
        """Wake the task: a device may have to be read at once."""
        self._poked.set()

    async def held(self, uuids: Iterable[str]) -> dict[str, Reading]:
        """Return a reading of each device, with its processes; empty if the driver is silent."""
        wanted = list(uuids)
        readings = await self._nvml.read(wanted, processes=set(wanted))
        return {one.uuid: one for one in readings}

    @property
    def not_ready_reason(self) -> str:
        """Why no call that needs a GPU can run here, though one should; otherwise empty."""
        if not len(self.table):
            return f"the GPUs cannot be listed: {self.reason}" if self.ill else ""
        if self.table.usable:
            return ""
        each = "; ".join(f"{gpu.uuid}: {gpu.evidence}" for gpu in self.table)
        return f"every GPU is quarantined ({each})"

    async def _watch(self, environ: Mapping[str, str]) -> None:
        while not self._closed:
            try:
                await self._turn(environ)
            except Exception:  # noqa: BLE001 - logged, and tried again
                # Devices that are no longer read would never become free again.
                _log.exception("Checking the GPUs failed; retrying")
                await self._wait(FIND_AGAIN_S)

    async def _turn(self, environ: Mapping[str, str]) -> None:
        if not len(self.table):
            await self._wait(FIND_AGAIN_S)
            await self._find(environ)
            self.on_change()
            return
        await self._look()
        due = self.table.next_look()
        await self._wait(None if due is None else due - self._now())

    async def _wait(self, seconds: float | None) -> None:
        if seconds is None or seconds > 0:
            try:
                await asyncio.wait_for(self._poked.wait(), seconds)
            except asyncio.TimeoutError:
                return
        self._poked.clear()

    async def _find(self, environ: Mapping[str, str]) -> None:
        inventory = await self._nvml.inventory()
        seen = visible(inventory.devices, environ)
        for warning in (*inventory.unreadable, *seen.warnings):
            _log.warning("GPUs: %s", warning)
        self.reason = inventory.reason or seen.reason
        self.ill, self.driver = inventory.ill, inventory.driver
        self.table.add(seen.devices)
        self.expected = len(self.table) > 0 or self.ill
        self._tell(inventory)

    def _tell(self, inventory: Inventory) -> None:
        if len(self.table):
            names = ", ".join(sorted({gpu.device.name for gpu in self.table}))
            _log.info("%d GPUs: %s; driver %s", len(self.table), names, inventory.driver)
        elif self.ill:
            _log.error("No GPU is usable: %s; retrying", self.reason)
        else:
            _log.info("No GPUs: %s", self.reason)

    async def _look(self) -> None:
        looked_at = self._now()
        looks = self.table.looks(looked_at)
        if not looks:
            return
        suspects = {look.uuid for look in looks if look.processes}
        readings = await self._nvml.read([look.uuid for look in looks], processes=suspects)
        changes = [self.table.read(one, looked_at, self._now()) for one in readings]
        for reading, change in zip(readings, changes, strict=True):
            self._tell_change(self.table[reading.uuid], change)
        if any(changes):
            self.on_change()

    def _tell_change(self, gpu: Gpu, change: GpuChange | None) -> None:
        if change is GpuChange.QUARANTINED:
            _log.error("GPU %s is quarantined: %s", gpu.uuid, gpu.evidence)
        elif change is GpuChange.RECOVERED:
            _log.warning("GPU %s is back from quarantine", gpu.uuid)
