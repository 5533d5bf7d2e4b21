"""Statistics of an app."""

from __future__ import annotations

from typing import Protocol

from flashpool.pool.apps import App, AppState
from flashpool.pool.stats import AppStats, AppWorkerStats, IsolatedStats

from .states import AppWorkerRow
from .table import AppTable
from .workers import AppWorkers


class ShownApp(Protocol):
    """`runner.AppRunner`."""

    app: App
    table: AppTable

    @property
    def state(self) -> AppState: ...

    @property
    def failure(self) -> str: ...


def of_app(
    shown: ShownApp,
    workers: AppWorkers,
    isolated: IsolatedStats,
    *,
    retiring: bool,
    note: str | None,
) -> AppStats:
    """Return the app's current statistics."""
    table = shown.table
    return AppStats(
        app=shown.app.name,
        state=shown.state.value,
        failure=shown.failure or None,
        waiting=len(table.waiting),
        workers=[_of_worker(row, workers) for row in table.workers.values()],
        deaths=table.deaths,
        last_death=table.last_death or None,
        retiring=retiring,
        isolated=isolated,
        note=note,
        neighbours=None if shown.app.neighbours is None else shown.app.neighbours(),
        routes=[] if retiring or shown.app.routes is None else shown.app.routes(),
    )


def _of_worker(row: AppWorkerRow, workers: AppWorkers) -> AppWorkerStats:
    process = workers.get(row.worker)
    return AppWorkerStats(
        generation=row.worker,
        state=row.state.value,
        pid=None if process is None else process.worker.pid,
        loaded_at=None if process is None else process.loaded_at,
        requests=len(row.requests) + row.lingering,
        served=row.served,
    )
