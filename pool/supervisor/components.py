"""The components of one pool: created, wired to each other, and closed in one place.

    at once          scheduler, learner, recorder, gpus (only a table so far)
    with the loop    poller <- worker_set <- zygote_set, calls <- residents, apps;
                     watchdog over worker_set and zygote_set

The supervisor and its parts reach each other through this object. The module of each component
explains the component's purpose.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from flashpool.pool.calls import BASE_ENVIRONMENT
from flashpool.pool.config import PoolConfig
from flashpool.pool.gpus.access import GpuAccess
from flashpool.pool.recorder import Recorder
from flashpool.pool.residents.apps.app_set import AppSet
from flashpool.pool.residents.apps.workers import AppSurroundings
from flashpool.pool.residents.events import Host
from flashpool.pool.residents.runner import ResidentRunner
from flashpool.pool.running_time import RunningTime
from flashpool.pool.scheduling.commands import SchedulerPolicy, ZygoteKey
from flashpool.pool.scheduling.preloading import PreloadLearner
from flashpool.pool.scheduling.scheduler import Scheduler
from flashpool.pool.workers.call_table import CallTable
from flashpool.pool.workers.ends.exits import Exits
from flashpool.pool.workers.ends.memory import OomWatch
from flashpool.pool.workers.ends.watchdog import Watchdog
from flashpool.pool.workers.listeners import WorkerListener, ZygoteListener
from flashpool.pool.workers.poller import Poller
from flashpool.pool.workers.scratch import ScratchDirectories
from flashpool.pool.workers.shortages import Shortages
from flashpool.pool.workers.worker_set import WorkerSet
from flashpool.pool.workers.zygote_set import ZygoteSet

#: The zygote that is always up, or about to be up.
BASE: Final = ZygoteKey(BASE_ENVIRONMENT)


class PoolListener(ZygoteListener, WorkerListener, Protocol):
    """Receives events of zygotes and workers."""


class Components:
    """The parts of a pool."""

    loop: asyncio.AbstractEventLoop
    poller: Poller
    worker_set: WorkerSet
    zygote_set: ZygoteSet
    watchdog: Watchdog
    calls: CallTable
    exits: Exits
    residents: ResidentRunner
    apps: AppSet

    def __init__(self, config: PoolConfig) -> None:
        self.config = config
        # Not the loop's time, which does not advance during a turn.
        self.running_time = RunningTime()
        self.now = self.running_time.now
        self.gpus = GpuAccess(config, self.now)
        self.scheduler = Scheduler(
            SchedulerPolicy(
                slots=config.slots,
                queue_limit=config.queue_limit,
                max_spares=config.max_spares,
                spare_idle_s=config.spare_idle_s,
                max_environments=config.max_environments,
                environment_idle_s=config.environment_idle_s,
            ),
            self.gpus.table,
        )
        self.learner = PreloadLearner(config.preload_learn, config.preload, config.preload_zygotes)
        self.recorder = Recorder()
        self.oom = OomWatch()
        self.shortages = Shortages(self.now)
        self.scratch = ScratchDirectories(config.worker_env)
        #: Whether nothing new may begin.
        self.closed = False

    async def open(
        self, *, listener: PoolListener, host: Host, call_ended: Callable[[], None]
    ) -> None:
        """Create the parts that need the running loop."""
        self.loop = asyncio.get_running_loop()
        self.poller = Poller(self.loop, self.recorder)
        await self.gpus.open()
        self.worker_set = WorkerSet(self.config, self.poller, self.now, listener, self.recorder)
        self.zygote_set = ZygoteSet(
            self.gpus.for_zygotes(),
            self.learner,
            worker_set=self.worker_set,
            poller=self.poller,
            now=self.now,
            listener=listener,
            recorder=self.recorder,
            shortages=self.shortages,
        )
        self.watchdog = Watchdog(
            self.config, self.zygote_set, self.worker_set, self.now, self.recorder
        )
        self.calls = CallTable(
            self.config,
            scheduler=self.scheduler,
            worker_set=self.worker_set,
            recorder=self.recorder,
            now=self.now,
            beat=self.running_time.beat,
            ended=call_ended,
        )
        self.exits = Exits(
            self.config,
            worker_set=self.worker_set,
            calls=self.calls,
            recorder=self.recorder,
            now=self.now,
            over=listener.exit_over,
            ended=call_ended,
        )
        self.residents = ResidentRunner(
            self.config,
            scheduler=self.scheduler,
            learner=self.learner,
            worker_set=self.worker_set,
            calls=self.calls,
            gpus=self.gpus,
            now=self.now,
            host=host,
            scratch=self.scratch,
            recorder=self.recorder,
        )
        self.apps = AppSet(
            AppSurroundings(
                config=self.config,
                scheduler=self.scheduler,
                worker_set=self.worker_set,
                calls=self.calls,
                gpus=self.gpus,
                learner=self.learner,
                now=self.now,
                host=host,
            )
        )

    async def close(self) -> None:
        """Close what is left when all processes have exited."""
        await self.residents.pressure.close()
        await self.calls.close()
        await self.scratch.close()
        self.zygote_set.close()
        self.poller.close()
        await self.gpus.close()


class ChangeSignal:
    """Lets coroutines wait for a change that may be the one they need."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self) -> None:
        """Report that something happened."""
        self._event.set()

    async def wait(self, seconds: float | None = None) -> None:
        """Wait for a change, at most ``seconds``; the caller then checks its condition."""
        try:
            await asyncio.wait_for(self._event.wait(), seconds)
        except asyncio.TimeoutError:
            return
        self._event.clear()
