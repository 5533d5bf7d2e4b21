"""All apps of a pool, and what they share: the scheduler's numbers for loads, and the end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from flashpool.pool.apps import App
from flashpool.pool.config import PoolConfig
from flashpool.pool.gpus.access import GpuAccess
from flashpool.pool.scheduling.scheduler import Scheduler
from flashpool.pool.workers.call_table import CallTable
from flashpool.pool.workers.poller import Clock
from flashpool.pool.workers.worker import Worker
from flashpool.pool.workers.worker_set import WorkerSet

from .app_runner import AppRunner
from .app_workers import AppNews, AppWorkers
from .events import Host


class AppSet:
    """The apps that are served."""

    def __init__(
        self,
        config: PoolConfig,
        *,
        scheduler: Scheduler,
        worker_set: WorkerSet,
        calls: CallTable,
        gpus: GpuAccess,
        now: Clock,
        host: Host,
    ) -> None:
        self._grace_s = config.grace_s
        self._now = now
        self._host = host
        self._apps: list[AppRunner] = []
        #: Loads that have no worker yet, by their numbers.
        self._loads: dict[int, Callable[[Worker | None, tuple[str, ...], str], None]] = {}
        self._workers: Callable[[App, AppNews], AppWorkers] = lambda app, to: AppWorkers(
            app,
            config,
            scheduler=scheduler,
            worker_set=worker_set,
            calls=calls,
            gpus=gpus,
            now=now,
            host=host,
            loads=self._loads,
            to=to,
        )

    def open(self, app: App, find: Callable[[App], Awaitable[str]]) -> AppRunner:
        """Serve an app from now on; ``find`` names its environment, and makes it if need be."""
        runner = AppRunner(
            app,
            grace_s=self._grace_s,
            now=self._now,
            find=partial(find, app),
            make_workers=partial(self._workers, app),
            changed=self._host.changed,
        )
        self._apps.append(runner)
        runner.start()
        return runner

    # What the scheduler decided of loads.

    def takes(self, load_id: int) -> bool:
        """Whether it is the load of an app."""
        return load_id in self._loads

    def dispatched(self, load_id: int, worker: Worker, gpus: tuple[str, ...]) -> None:
        """A worker is there for a load."""
        self._loads.pop(load_id)(worker, gpus, "")

    def not_started(self, load_id: int, reason: str) -> None:
        """No worker can be had for a load."""
        self._loads.pop(load_id)(None, (), reason)

    # Ends.

    @property
    def busy(self) -> int:
        """Requests, of all apps, that have not ended."""
        return sum(one.busy for one in self._apps)

    @property
    def any_remaining(self) -> bool:
        """Whether there are workers, closing ones included."""
        return any(len(one.workers) for one in self._apps)

    @property
    def any_closing(self) -> bool:
        """Whether a worker of an app that was closed is not gone."""
        return any(one.table.closing and len(one.workers) for one in self._apps)

    def close_idle(self) -> None:
        """Let the workers of those shut down that have no request."""
        for one in self._apps:
            if not one.busy:
                one.close()

    def close_all(self) -> None:
        """Let all workers shut down."""
        for one in self._apps:
            one.close()

    def finish_all(self) -> None:
        """End all requests that are left."""
        for one in self._apps:
            one.finish()
