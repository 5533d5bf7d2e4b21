"""Reads figures about GPUs for operators: utilisation, temperature, memory, ECC and Xid errors.

No decision depends on these figures. One task on the supervisor's loop queries the driver's thread,
one device per query, so that it never delays the reading of a device that settles. On a machine
without GPUs there is no task.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Final

from .devices import Device, GpuHealth
from .nvml import Nvml

_log = logging.getLogger(__name__)

#: Seconds between two rounds of queries.
LOOK_S: Final = 5.0
#: The health of a device that was never queried.
_UNKNOWN: Final = GpuHealth()


class HealthWatch:
    """The latest health of each device. All methods belong to the loop's thread."""

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml
        self._latest: dict[str, GpuHealth] = {}
        #: By the UUID of the whole GPU, since the pool started.
        self._xids: Counter[str] = Counter()
        self._last_xid: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def open(self, devices: Callable[[], list[Device]]) -> None:
        """Begin to query; ``devices`` returns the devices for each round."""
        self._task = asyncio.ensure_future(self._watch(devices))

    async def close(self) -> None:
        """Stop querying."""
        # Before Python 3.12, `wait_for` swallows a cancellation that arrives together with the
        # event.
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def of(self, device: Device) -> GpuHealth:
        """Return the latest health of a device."""
        return self._latest.get(device.uuid, _UNKNOWN)

    def xids(self, device: Device) -> tuple[int, int | None]:
        """Return how many Xid errors its GPU had since the pool started, and the latest code."""
        gpu = device.parent or device.uuid
        return self._xids[gpu], self._last_xid.get(gpu)

    async def _watch(self, devices: Callable[[], list[Device]]) -> None:
        while not self._closed:
            try:
                await self.look(devices())
            except Exception:  # noqa: BLE001 - logged, and tried again
                _log.exception("Looking at the health of GPUs failed; retrying")
            await asyncio.sleep(LOOK_S)

    async def look(self, devices: list[Device]) -> None:
        """Query all devices once."""
        gpus = {device.parent or device.uuid for device in devices}
        for uuid, code in await self._nvml.xids(gpus):
            self._xids[uuid] += 1
            self._last_xid[uuid] = code
            _log.warning("GPU %s reports Xid error %d", uuid, code)
        for device in devices:
            gpu = device.parent or device.uuid
            self._latest[device.uuid] = await self._nvml.health(device.uuid, gpu)
