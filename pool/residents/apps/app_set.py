"""All apps of a pool: opening and closing them, and the loads that the scheduler decides about."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Final

from flashpool.pool.apps import App
from flashpool.pool.stats import AppStats
from flashpool.pool.workers.worker import Worker

from .runner import AppRunner
from .workers import AppSurroundings, AppWorkers

#: The close code of WebSockets when the server stops.
_RESTARTS: Final = 1012


class AppSet:
    """The apps that are served."""

    def __init__(self, pool: AppSurroundings) -> None:
        self._pool = pool
        self._apps: list[AppRunner] = []
        #: Numbers for workers, by app name: an app that replaces another continues counting.
        self._numbers: dict[str, Iterator[int]] = {}

    def open(self, app: App, find: Callable[[App], Awaitable[str]]) -> AppRunner:
        """Serve an app from now on; ``find`` returns its environment's name, and may build it."""
        runner = AppRunner(
            app,
            grace_s=self._pool.config.grace_s,
            now=self._pool.now,
            find=find,
            numbers=self._numbers.setdefault(app.name, itertools.count(1)),
            make_workers=partial(AppWorkers, app, self._pool),
            changed=self._pool.host.changed,
        )
        self._apps = [one for one in self._apps if not one.is_over]
        self._apps.append(runner)
        runner.start()
        return runner

    # Decisions of the scheduler about loads.

    def takes(self, load_id: int) -> bool:
        """Return whether this number is that of an app's load."""
        return load_id in self._pool.loads

    def dispatched(self, load_id: int, worker: Worker, gpus: tuple[str, ...]) -> None:
        """Give a load its worker."""
        self._pool.loads.pop(load_id)(worker, gpus, "")

    def not_started(self, load_id: int, reason: str) -> None:
        """Fail a load: no worker is available."""
        self._pool.loads.pop(load_id)(None, (), reason)

    def stats(self) -> list[AppStats]:
        """Return the statistics of each app."""
        return [one.stats() for one in self._apps if not one.is_over]

    # Ends.

    @property
    def busy(self) -> int:
        """Return the number of requests, of all apps, that have not ended."""
        return sum(one.busy for one in self._apps)

    @property
    def any_remaining(self) -> bool:
        """Return whether any worker is left, even if it is closing."""
        return any(len(one.workers) for one in self._apps)

    @property
    def any_closing(self) -> bool:
        """Return whether a worker of a closed app has not exited."""
        return any(one.table.closing and len(one.workers) for one in self._apps)

    def drain(self) -> None:
        """Let requests end by themselves, and close WebSockets, which would not."""
        for one in self._apps:
            one.end_sockets(_RESTARTS, "the server stops")

    def close_idle(self) -> None:
        """Let the workers of apps without requests shut down."""
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
