"""GPUs of calls: how many each gets, and the variables that show them.

The supervisor uses GPUs only through this module. It contains the table (`table`), by which the
scheduler decides, and the monitor (`monitor`), which keeps the table in step with the driver.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from flashpool.pool.config import PoolConfig, thread_limits, usable_cores
from flashpool.pool.errors import InvalidRequest, Overloaded
from flashpool.pool.stats import GpusStats, GpuStats

from .monitor import GpuMonitor
from .states import MIB, Gpu, GpuPolicy
from .table import GpuTable

#: With this order, CUDA counts devices like all other tools.
_ORDER: Final = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
_VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
#: Variables of which each call for GPUs has its own value.
VARYING: Final = (_VISIBLE, *_ORDER)


class GpuAccess:
    """The GPUs of one pool. All methods belong to the loop's thread."""

    def __init__(self, config: PoolConfig, now: Callable[[], float]) -> None:
        self._config = config
        self._now = now
        policy = GpuPolicy(
            calls_per_gpu=config.calls_per_gpu,
            settle_s=config.gpu_settle_s,
            tolerance_bytes=config.gpu_tolerance_mb * MIB,
        )
        self.table = GpuTable(policy)
        self.watch = GpuMonitor(self.table, now)

    async def open(self) -> None:
        """Find out which devices exist."""
        await self.watch.open(os.environ)

    @property
    def per_call(self) -> int:
        """GPUs of a call that does not say how many."""
        given = self._config.gpus_per_call
        if given is None:
            return 1 if self.watch.expected else 0
        return given

    @property
    def not_ready_reason(self) -> str:
        """Why calls of this pool cannot be served for now; otherwise empty."""
        if not_ready_reason := self.watch.not_ready_reason:
            return not_ready_reason
        if self._config.gpus_per_call and self._config.gpus_per_call > len(self.table):
            return (
                f"each call is to have {self._config.gpus_per_call} GPUs, and there are "
                f"{len(self.table)} here: {self.watch.reason or 'see FLASHPOOL_GPUS_PER_CALL'}"
            )
        return ""

    def number(self, asked: int | None) -> int:
        """Return how many GPUs a call gets.

        Raises:
            InvalidRequest: the call asks for more than there are.
            Overloaded: GPUs should exist, and the driver cannot list them for now.
        """
        number = self.per_call if asked is None else asked
        if number > len(self.table):
            if self.watch.ill:
                raise Overloaded(
                    f"no GPU is usable at the moment: {self.watch.reason}; send the call to another "
                    "worker",
                    retry_after_s=10,
                )
            why = f" ({self.watch.reason})" if self.watch.reason else ""
            wanted = "1 GPU" if number == 1 else f"{number} GPUs"
            raise InvalidRequest(
                f"gpus: the call asks for {wanted}, but this machine has {len(self.table)}{why}",
                gpus=number,
                available=len(self.table),
            )
        return number

    def variables(self, uuids: tuple[str, ...], env: Mapping[str, str]) -> dict[str, str]:
        """Return the variables of a call with these devices; they override the call's own."""
        if not self.watch.expected:
            return dict(env)
        threads = self._threads(len(uuids))
        return {**threads, **env, **_ORDER, _VISIBLE: ",".join(uuids)}

    def for_zygotes(self) -> PoolConfig:
        """Return the pool's settings, with the cores divided among calls of the usual kind.

        Libraries that are preloaded read their number of threads when the zygote loads them.
        """
        if not self.per_call or not len(self.table):
            return self._config
        return replace(self._config, sharing=self._sharing(self.per_call))

    @property
    def calls(self) -> int:
        """How many calls of the usual kind can be on GPUs at once."""
        return self.table.usable * self._config.calls_per_gpu // max(1, self.per_call)

    def free_calls(self, given_up: int) -> int:
        """Return how many calls could begin now if ``given_up`` further shares were released."""
        free = sum(self.table.shares_left(gpu) for gpu in self.table)
        return (free + given_up) // max(1, self.per_call)

    def given_back(self) -> None:
        """Have the devices of a released lease read now."""
        self.watch.poke()

    async def close(self) -> None:
        """Stop reading devices."""
        await self.watch.close()

    def stats(self) -> GpusStats:
        """Return statistics about the devices."""
        gpus = list(self.table)
        return GpusStats(
            total=len(gpus),
            usable=self.table.usable,
            waiting=self.table.waiting,
            driver=self.watch.driver,
            reason=self.watch.reason or None,
            devices=[self._device(gpu) for gpu in gpus],
        )

    def _sharing(self, number: int) -> int:
        """Return how many calls for ``number`` GPUs each can run at once."""
        return max(1, len(self.table) * self._config.calls_per_gpu // number)

    def _threads(self, number: int) -> dict[str, str]:
        """Return the thread limits of a call: its share of the cores is that of the GPUs.

        Limits that the server sets itself stay. A value equal to the zygote's is left out:
        libraries may have read it already.
        """
        cores, usual = usable_cores(), self.for_zygotes()
        limits = thread_limits(cores, self._sharing(number) if number else self._config.slots)
        if limits == thread_limits(cores, usual.sharing or usual.slots):
            return {}
        return {name: n for name, n in limits.items() if name not in self._config.worker_env}

    def _device(self, gpu: Gpu) -> GpuStats:
        since = gpu.quarantined_at
        health, xids = self.watch.health.of(gpu.device), self.watch.health.xids(gpu.device)
        used = gpu.used_bytes
        # The table does not read a device whose shares are all out: no decision depends on it.
        if gpu.shares_out and health.used_bytes is not None:
            used = health.used_bytes
        return GpuStats(
            uuid=gpu.uuid,
            index=gpu.device.index,
            name=gpu.device.name,
            parent=gpu.device.parent,
            state=gpu.state.value,
            calls=gpu.shares_out,
            memory_bytes=gpu.device.memory_bytes,
            used_bytes=used,
            level_bytes=gpu.level_bytes,
            evidence=None if gpu.evidence is None else str(gpu.evidence),
            quarantined_s=None if since is None else round(self._now() - since, 3),
            utilization_percent=health.utilization_percent,
            temperature_c=health.temperature_c,
            ecc_corrected=health.ecc_corrected,
            ecc_uncorrected=health.ecc_uncorrected,
            xid_errors=xids[0],
            last_xid=xids[1],
        )
