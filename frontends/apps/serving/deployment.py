"""The app that is served, and what takes its place: the hot restart.

    serve(found) --> Backend.open_app --> serves
    reload --find--> Backend.open_app --> settled --+--> serves; the old one retires
                                                    '--> leaves; the old one serves on
    look_again --find--> takes the place of an app that cannot be loaded

A successor is loaded beside the old app where there is room for both, and takes over when all of its
workers are ready. Where there is not, the old one leaves first, and requests wait for the new one.
Requests that the old one has stay with it: it ends when they have, or after FLASHPOOL_DRAIN_S.
An artifact whose content is that of the app which serves is left alone. An app that cannot be loaded
is replaced at once, whether its successor can be loaded or not: it serves nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from flashpool.frontends.apps.errors import AppError
from flashpool.frontends.service import Reloaded, ReloadOutcome
from flashpool.pool.apps import App, AppService, AppState
from flashpool.pool.backend import Backend
from flashpool.pool.errors import FlashpoolError

from .room import no_room_for

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundApp:
    """What there is to serve now."""

    app: App
    #: Names its files, all of them; empty where they may change under that name.
    content: str = ""
    #: Called when it gets the requests, and when nothing of it runs any more.
    begin: Callable[[], None] = lambda: None
    release: Callable[[], None] = lambda: None


class AppDeployment:
    """One app, through all that take its place."""

    def __init__(
        self, backend: Backend, find: Callable[[], Awaitable[FoundApp]], drain_s: float
    ) -> None:
        """``find`` looks at the artifact; what it raises is why there is nothing to serve."""
        self._backend = backend
        self._find = find
        self._drain_s = drain_s
        self._found: FoundApp | None = None
        #: Why there is no app yet, and will be none for now; or nothing.
        self.problem = ""
        self._service: AppService | None = None
        self._reloading: asyncio.Task[Reloaded] | None = None
        #: Why the last reload failed, as it was logged.
        self._told = ""

    @property
    def service(self) -> AppService | None:
        """Who gets the next request; None before there is an app."""
        return self._service

    @property
    def generated(self) -> bool:
        """Whether the client generated it: ``/execute`` is not for it then."""
        return self._found is None or self._found.app.generated

    def serve(self, found: FoundApp) -> None:
        """Have the app loaded, which gets all requests from now on."""
        self.problem = ""
        self._take_over(found, self._backend.open_app(found.app))

    def release(self) -> None:
        """The pool has stopped: nothing runs any more."""
        found, self._found = self._found, None
        if found is not None:
            found.release()

    async def reload(self) -> Reloaded:
        """Look at the artifact again, and serve what is there now. Who asks meanwhile hears of the same."""
        return await self._looking(asked=True)

    @property
    def is_hopeless(self) -> bool:
        """Whether the app cannot be loaded, and another artifact may be."""
        if self._found is None or self._service is None:
            return False
        return bool(self._found.content) and self._service.state is AppState.FAILED

    async def look_again(self) -> None:
        """Serve another artifact in place of an app that cannot be loaded, if there is one.

        Files that change under one name are read at each retry anyway.
        """
        if self.is_hopeless:
            await self._looking(asked=False)

    async def _looking(self, *, asked: bool) -> Reloaded:
        if self._reloading is None:
            self._reloading = asyncio.ensure_future(self._reload(asked))
            self._reloading.add_done_callback(self._over)
        return await asyncio.shield(self._reloading)

    def _over(self, _: asyncio.Task[Reloaded]) -> None:
        self._reloading = None

    async def _reload(self, asked: bool) -> Reloaded:
        try:
            found = await self._find()
        except (AppError, FlashpoolError, OSError) as error:
            return self._failed(str(error), told_once=not asked)
        except Exception as error:  # noqa: BLE001 - whoever asked is told
            reason = f"the app cannot be prepared: {error!r}"
            return self._failed(reason, told_once=not asked)
        if self._serves(found):
            return self._unchanged(found)
        if self._service is not None and self._service.state is AppState.FAILED:
            return await self._replace_failed(found, asked)
        why_not = no_room_for(found.app, self._backend.stats())
        if why_not and self._service is not None:
            return await self._replace_at_once(found, why_not)
        _log.info("%s: reloading: the successor is loaded beside the old app", found.app.name)
        service = self._backend.open_app(found.app)
        if await service.settled() is not AppState.SERVED:
            reason = service.failure
            service.retire(0.0, found.release)
            return self._failed(reason)
        self._take_over(found, service)
        return self._succeeded()

    def _serves(self, found: FoundApp) -> bool:
        """Whether the app that serves well is of the same files."""
        if self._found is None or self._service is None:
            return False
        same = bool(found.content) and found.content == self._found.content
        return same and self._service.state is AppState.SERVED

    async def _replace_failed(self, found: FoundApp, asked: bool) -> Reloaded:
        assert self._found is not None
        if not asked and found.content == self._found.content:
            found.release()
            message = "the artifact has not changed: the app is loaded again as it is"
            return Reloaded(outcome=ReloadOutcome.UNCHANGED, message=message)
        _log.info("%s: reloading: the old app cannot be loaded, and is replaced", found.app.name)
        service = self._backend.open_app(found.app)
        self._take_over(found, service)
        if await service.settled() is AppState.SERVED:
            return self._succeeded()
        return self._failed(service.failure)

    async def _replace_at_once(self, found: FoundApp, why: str) -> Reloaded:
        _log.info("%s: reloading: the old app is stopped first, because %s", found.app.name, why)
        before = self._found
        service = self._backend.open_app(found.app)
        self._take_over(found, service)
        if await service.settled() is AppState.SERVED:
            return self._succeeded()
        reason = service.failure
        assert before is not None
        # Its directory may be gone by now, and then it fails like the new one.
        self._take_over(before, self._backend.open_app(before.app))
        return self._failed(reason)

    def _take_over(self, found: FoundApp, service: AppService) -> None:
        old, old_service = self._found, self._service
        self._found, self._service = found, service
        found.begin()
        if old is not None and old_service is not None:
            old_service.retire(self._drain_s, old.release)

    def _unchanged(self, found: FoundApp) -> Reloaded:
        found.release()
        message = "nothing changed: the artifact is the one that is served already"
        _log.info("%s: %s", found.app.name, message)
        if self._service is not None:
            self._service.note("")  # the artifact that could not be loaded is gone
        return Reloaded(outcome=ReloadOutcome.UNCHANGED, message=message)

    def _succeeded(self) -> Reloaded:
        assert self._found is not None
        message = "reloaded: the successor serves"
        _log.info("%s: %s", self._found.app.name, message)
        return Reloaded(outcome=ReloadOutcome.RELOADED, message=message)

    def _failed(self, reason: str, *, told_once: bool = False) -> Reloaded:
        fails = self._service is not None and self._service.state is AppState.FAILED
        end = "no app is served" if fails else "the old app serves on"
        message = f"the reload failed, and {end}: {reason}"
        if not (told_once and message == self._told):
            _log.error("%s", message)
        self._told = message
        if self._service is not None:
            self._service.note(message)
        return Reloaded(outcome=ReloadOutcome.FAILED, message=message)
