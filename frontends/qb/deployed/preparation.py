"""From settings and variables to the app of a queue's resource, ready to be opened."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from flashpool.frontends import modes
from flashpool.frontends.apps.contract import DeployedApp, EntryKind
from flashpool.frontends.apps.errors import ResourceRefused
from flashpool.frontends.apps.flash_contract import FlashContract
from flashpool.frontends.service import Service
from flashpool.frontends.settings.table import Settings
from flashpool.pool.apps import App


def preparation(
    settings: Settings, environ: Mapping[str, str]
) -> Callable[[Service], Awaitable[App]]:
    """What makes the app that the settings and variables mean; see `AppJobs`."""

    def look() -> DeployedApp:
        folder = Path(settings.app_dir).resolve()
        return FlashContract(environ).deployed_app(folder, modes.resource(environ), ())

    async def prepare(service: Service) -> App:
        found = await asyncio.to_thread(look)
        return job_app(
            found,
            settings,
            environ,
            settings.app_workers or max(1, service.pool.stats().gpus.total),
        )

    return prepare


def job_app(
    found: DeployedApp, settings: Settings, environ: Mapping[str, str], workers: int
) -> App:
    """The app of a resource that takes jobs.

    Raises:
        ResourceRefused: it takes none.
    """
    if found.entry.kind is not EntryKind.HANDLER:
        raise ResourceRefused(
            f"resource {found.resource!r} is load-balanced, and this is the queue's entry point: use "
            "the load-balanced image (lb_handler:app, or `flashpool serve lb`)"
        )
    from flashpool.frontends.lb.deployed import _variables

    config = settings.to_pool_config()
    return App(
        name=found.resource,
        directory=str(found.source),
        file=found.entry.file.name,
        attribute=found.entry.attribute,
        jobs=True,
        functions=tuple(each.name for each in found.functions[:1]),
        env=_variables(found.resource, environ),
        memory_mb=config.memory_mb,
        workers=workers,
        concurrency=found.entry.concurrency,
        threads=found.entry.concurrency,
        queue_limit=settings.queue_limit,
        queue_timeout_s=settings.queue_timeout_s,
        start_timeout_s=settings.app_start_timeout_s,
    )
