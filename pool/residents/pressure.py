"""Chooses residents to close when memory, GPUs or environments run short.

    measure   every second: the memory that residents use, also on GPUs; if above a limit
              -> InstanceTable.tick
    evict     a call waits for GPUs that idle residents hold, or
              its zygote cannot start because residents keep other zygotes up

Only idle residents are closed, the least recently called first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Final

from flashpool.pool._child import processes
from flashpool.pool.gpus.access import GpuAccess
from flashpool.pool.gpus.devices import Reading
from flashpool.pool.scheduling.scheduler import Scheduler
from flashpool.pool.workers.ends import memory
from flashpool.pool.workers.poller import Clock
from flashpool.pool.workers.worker import LoadedInstance

from . import states
from .states import Instance, InstanceState
from .table import InstanceTable

_log = logging.getLogger(__name__)

#: Most residents that are measured in one turn.
_LOOKS: Final = 16


class ResidentPressure:
    """Measures the resources that all residents of a pool use, and evicts residents."""

    def __init__(
        self,
        table: InstanceTable,
        loaded: dict[str, LoadedInstance],
        scheduler: Scheduler,
        gpus: GpuAccess,
        now: Clock,
        do: Callable[[Iterable[states.Command]], None],
    ) -> None:
        self._table = table
        self._loaded = loaded
        self._scheduler = scheduler
        self._gpus = gpus.table
        self._watch = gpus.watch
        self._now = now
        self._do = do
        self._measuring: asyncio.Task[None] | None = None
        self._measuring_gpus: asyncio.Task[None] | None = None

    # Memory.

    def measure(self) -> None:
        """Measure residents that were called since they were measured, the longest ago first."""
        used = [
            loaded for loaded in self._loaded.values() if loaded.used and not loaded.worker.stopping
        ]
        for loaded in sorted(used, key=lambda loaded: loaded.measured_at)[:_LOOKS]:
            loaded.used, loaded.measured_at = False, self._now()
            loaded.memory_bytes = memory.used(loaded.worker.pid)
        if self._table.policy.gpu_bytes is not None:
            self._measure_gpus()
        limit = self._table.policy.memory_bytes
        if (
            limit is not None
            and sum(loaded.memory_bytes for loaded in self._loaded.values()) > limit
        ):
            self._measure_exactly()
            return
        for name, loaded in self._loaded.items():
            self._table.measured(name, loaded.memory_bytes)

    def _measure_exactly(self) -> None:
        """Measure all residents with shared pages counted once, on a thread, as it takes long."""
        if self._measuring is None or self._measuring.done():
            self._measuring = _begun(self._measure_all())

    async def _measure_all(self) -> None:
        workers = dict(self._loaded)
        pids = {name: loaded.worker.pid for name, loaded in workers.items()}
        found = await asyncio.to_thread(_exact, pids)
        for name, used in found.items():
            if self._loaded.get(name) is workers[name]:
                self._table.measured(name, used)
        self._do(self._table.tick(self._now()))

    def _measure_gpus(self) -> None:
        """Ask the driver for the residents' GPU memory; a thread does that."""
        holders = {name: loaded for name, loaded in self._loaded.items() if loaded.gpus}
        done = self._measuring_gpus is None or self._measuring_gpus.done()
        if holders and done:
            self._measuring_gpus = _begun(self._ask_driver(holders))

    async def _ask_driver(self, holders: dict[str, LoadedInstance]) -> None:
        readings = await self._watch.held(
            {uuid for loaded in holders.values() for uuid in loaded.gpus}
        )
        for name, loaded in holders.items():
            if self._loaded.get(name) is loaded:
                pids = {loaded.worker.pid, *processes.descendants(loaded.worker.pid)}
                used = sum(self._of_tree(readings.get(uuid), pids) for uuid in loaded.gpus)
                self._table.measured_on_gpus(name, used)
        self._do(self._table.tick(self._now()))

    def _of_tree(self, reading: Reading | None, pids: set[int]) -> int:
        """Return the bytes that these processes hold on a device.

        In a container, the driver may not name processes. Then the result is all memory in use on
        the device beyond its level without calls: too much, if several residents share the device.
        """
        if reading is None or reading.used_bytes is None:
            return 0
        named = [used for pid, used in reading.processes or () if pid in pids and used is not None]
        if named:
            return sum(named)
        return max(0, reading.used_bytes - (self._gpus[reading.uuid].level_bytes or 0))

    async def close(self) -> None:
        """Stop measuring."""
        tasks = [task for task in (self._measuring, self._measuring_gpus) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def evict(self, *, crowded: bool) -> None:
        """Close idle residents that keep a call from running.

        ``crowded``: a call waits for another environment's room.
        """
        if self._gpus.waiting:
            self.evict_for_gpus()
        if crowded:
            self.evict_environment()

    def evict_for_process(self) -> None:
        """Close one resident to make room for another process."""
        if not any(one.state is InstanceState.CLOSING for one in self._table):
            self._do(self._table.needed(self._loaded, "there was no room for another process"))

    # GPUs.

    @property
    def idle_gpus(self) -> int:
        """Return the number of devices that calls could get because their residents are idle."""
        return sum(len(loaded.gpus) for name, loaded in self._loaded.items() if self._is_idle(name))

    def _is_idle(self, name: str) -> bool:
        instance = self._table.get(name)
        return instance is not None and instance.idle

    def evict_for_gpus(self) -> None:
        """Close as many idle residents as the first call that waits for GPUs needs."""
        missing = self._gpus.wanted() - len(self._held(closing=True))
        while missing > 0:
            held = self._held(closing=False)
            commands = self._table.needed(held.values(), "a call needed its GPU")
            if not commands:
                return
            closed = {one.instance for one in commands if isinstance(one, states.Close)}
            missing -= sum(name in closed for name in held.values())
            self._do(commands)

    def _held(self, *, closing: bool) -> dict[str, str]:
        """Map devices without a free share to an instance that holds them.

        ``closing``: only instances that are closing; otherwise, only the others.
        """
        held: dict[str, str] = {}
        for name, loaded in self._loaded.items():
            instance = self._table.get(name)
            if instance is not None and (instance.state is InstanceState.CLOSING) is closing:
                held.update((uuid, name) for uuid in loaded.gpus if not self._gpus.has_share(uuid))
        return held

    # Environments.

    def evict_environment(self) -> None:
        """Close all residents of one environment, so that another one's zygote may start."""
        kept = {name: self.in_environment(name) for name in self._scheduler.kept_by_residents()}
        if any(all(one.state is InstanceState.CLOSING for one in found) for found in kept.values()):
            return  # one environment is about to be free
        free = [found for found in kept.values() if all(map(_may_go, found))]
        if free:
            oldest = min(free, key=lambda found: max(one.last_used for one in found))
            self._close(oldest, "another environment needed its room (FLASHPOOL_MAX_ENVIRONMENTS)")

    def close_in_environment(self, environment: str, reason: str) -> bool:
        """Close all residents of an environment; if any is in use, close none and return False."""
        found = self.in_environment(environment)
        if not all(map(_may_go, found)):
            return False
        self._close(found, reason)
        return True

    def in_environment(self, environment: str) -> list[Instance]:
        """Return the instances with a worker in this environment."""
        found = []
        for name, loaded in self._loaded.items():
            instance = self._table.get(name)
            if instance is not None and loaded.worker.zygote.key.environment == environment:
                found.append(instance)
        return found

    def _close(self, instances: list[Instance], reason: str) -> None:
        names = {one.name for one in instances}
        self._do(self._table.close_idle(reason, lambda one: one.name in names))


def _begun(work: Coroutine[None, None, None]) -> asyncio.Task[None]:
    task = asyncio.ensure_future(work)
    task.add_done_callback(_tell_failure)
    return task


def _tell_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.warning("The memory of instances could not be measured: %r", error)


def _may_go(instance: Instance) -> bool:
    return instance.idle or instance.state is InstanceState.CLOSING


def _exact(pids: dict[str, int]) -> dict[str, int]:
    return {name: memory.exact(pid) for name, pid in pids.items()}
