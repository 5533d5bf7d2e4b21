"""A deployed app as an ASGI application: from a source to workers that serve it.

    start --> prepare: wait for the artifact, unpack, read --AppError--> 503; tried again if
                 |                                                   that may help, else when the
                 |                                                   artifact changes
                 '--> AppDeployment.serve --> AppProxy passes requests on
    reload --> prepare again --> AppDeployment.reload
    retry of an app that cannot be loaded --> the artifact has changed? --> the same

`server` or another host runs the server; this module decides which app it serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Final

from starlette.types import Receive, Scope, Send

from flashpool.frontends.admin import Admin
from flashpool.frontends.apps.errors import AppError
from flashpool.frontends.apps.neighbours import Neighbours
from flashpool.frontends.apps.preparation import AppSource, PreparedApp
from flashpool.frontends.apps.serving.asgi_proxy import AppProxy
from flashpool.frontends.apps.serving.deployment import AppDeployment, FoundApp
from flashpool.frontends.apps.serving.route_counts import RouteCounts, WatchedPolicies
from flashpool.frontends.server_process import has_terminal
from flashpool.frontends.service import Reloaded, ReloadOutcome, Service
from flashpool.frontends.settings.table import Settings

_log = logging.getLogger(__name__)

#: Seconds between attempts to prepare an app if a failure may pass; the last pause repeats.
_PAUSES_S: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
#: Seconds between checks for a change of an artifact that was refused.
_LOOK_S: Final = 5.0


class DeployedEndpoint:
    """The ASGI application. ``lifespan_context`` starts and stops all its parts."""

    def __init__(
        self,
        service: Service,
        settings: Settings,
        source: AppSource,
        admin: Admin | None = None,
    ) -> None:
        self._service = service
        self._settings = settings
        self._source = source
        self._admin = admin
        pool = service.pool
        self._routes = RouteCounts()
        self._deployment = AppDeployment(pool, self._find, settings.drain_s)
        self._proxy = AppProxy(
            self._deployment,
            max_body_mb=settings.max_body_mb,
            draining=lambda: pool.draining,
            access_log=settings.access_log,
            routes=self._routes,
        )
        service.reload_app = self.reload
        #: Set when a reload asks to read the artifact now.
        self._asked = asyncio.Event()
        self._neighbours: asyncio.Task[None] | None = None
        self._reloading: asyncio.Task[Reloaded] | None = None
        self._looking: asyncio.Task[None] | None = None
        #: May be wrapped by the code that hosts the application.
        self.lifespan_context: Callable[[DeployedEndpoint], AbstractAsyncContextManager[None]]
        self.lifespan_context = DeployedEndpoint._running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, or the lifespan."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._proxy(scope, receive, send)

    # Life.

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with self.lifespan_context(self):
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        service = self._service
        await service.start()
        bringing_up = asyncio.ensure_future(self._bring_up())
        try:
            if self._admin is not None:
                await self._admin.start()
            yield
        finally:
            for task in (bringing_up, self._neighbours, self._reloading, self._looking):
                if task is not None:
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
            # Statistics remain available until the service has stopped.
            await service.stop()
            if self._admin is not None:
                await self._admin.stop()
            self._deployment.release()

    async def _bring_up(self) -> None:
        for pause_s in _pauses():
            try:
                prepared = await self._source.prepare(wait=not self._deployment.problem)
            except AppError as error:
                passes, failure = error.passes, str(error)
            except Exception as error:  # noqa: BLE001 - clients of the app get the reason
                passes, failure = True, f"the app cannot be prepared: {error!r}"
            else:
                self._service.app_failure = ""
                self._deployment.serve(self._as_found(prepared))
                return
            if failure != self._deployment.problem:
                again = f"in {pause_s:g} s" if passes else "when the artifact has changed"
                _log.error("%s: %s; it is tried again %s", self._source.resource, failure, again)
                self._deployment.problem = self._service.app_failure = failure
            if passes:
                await self._is_asked_within(pause_s)
            else:
                await self._until_changed()

    async def _until_changed(self) -> None:
        """Wait until the refused artifact has changed, or a reload is requested."""
        while not await self._source.may_differ():
            if await self._is_asked_within(_LOOK_S):
                return
        _log.info("%s: the artifact has changed: it is looked at again", self._source.resource)

    def _on_retry(self) -> None:
        """Load an app that could not be loaded once more; the artifact may have changed."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._look_again())

    async def _look_again(self) -> None:
        if self._deployment.is_hopeless and await self._source.may_differ():
            await self._deployment.look_again()

    async def _is_asked_within(self, seconds: float) -> bool:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._asked.wait(), seconds)
        asked = self._asked.is_set()
        self._asked.clear()
        return asked

    async def reload(self) -> Reloaded:
        """Read the artifact again, and serve its present content."""
        if self._deployment.service is None:
            message = "there is no app to reload yet: it is being prepared"
            if self._deployment.problem:
                self._asked.set()
                message = (
                    f"there is no app to reload yet: {self._deployment.problem}; the server now "
                    "reads the artifact again"
                )
            return Reloaded(outcome=ReloadOutcome.NO_APP, message=message)
        return await self._deployment.reload()

    def restarts_at(self, signum: int) -> bool:
        """Start a reload if the signal requests one; return whether it does. Call on the loop.

        A closing terminal sends SIGHUP, too: with a terminal, SIGHUP stops the server.
        """
        if signum != signal.SIGHUP or has_terminal():
            return False
        _log.info("SIGHUP: reloading")
        self._reloading = asyncio.ensure_future(self.reload())
        return True

    async def _find(self) -> FoundApp:
        return self._as_found(await self._source.prepare(wait=False))

    def _as_found(self, prepared: PreparedApp) -> FoundApp:
        settings, pool = self._settings, self._service.pool
        workers = settings.app_workers or max(1, pool.stats().gpus.total)
        app = prepared.to_app(settings, workers)
        policies = None if app.policies is None else WatchedPolicies(app.policies)
        return FoundApp(
            app=replace(app, policies=policies, routes=self._routes.stats, on_retry=self._on_retry),
            content=prepared.folder.digest,
            begin=partial(self._begin, prepared.neighbours, policies),
            release=prepared.release,
        )

    def _begin(self, neighbours: Neighbours | None, policies: WatchedPolicies | None) -> None:
        self._routes.serve(policies)
        if self._neighbours is not None:
            self._neighbours.cancel()
        self._neighbours = None if neighbours is None else asyncio.ensure_future(neighbours.run())


def _pauses() -> Iterator[float]:
    yield from _PAUSES_S
    while True:
        yield _PAUSES_S[-1]
