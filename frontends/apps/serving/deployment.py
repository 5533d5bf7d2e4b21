"""The app that is served, and its replacement by a successor without a pause: the hot restart.

    serve(found) --> Backend.open_app --> serves
    reload --find--> Backend.open_app --> settled --+--> serves; the old app retires
                                                    '--> retires; the old app keeps serving
    look_again --find--> replaces an app that cannot be loaded

If there is room for both apps, a successor is loaded beside the old app, and takes over when all of
its workers are ready. If not, the old app stops first, and requests wait for the new one. Requests
that the old app has accepted stay with it: it stops when they have ended, or after
FLASHPOOL_DRAIN_S. An artifact with the content of the served app changes nothing. An app that
cannot be loaded is replaced at once, even if its successor cannot be loaded either: it serves no
requests.
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
    """The app that was found, ready to be served."""

    app: App
    #: The digest of its archive; empty if the files may change in place.
    content: str = ""
    #: Called when the app gets its first requests, and when none of its processes is left.
    begin: Callable[[], None] = lambda: None
    release: Callable[[], None] = lambda: None


class AppDeployment:
    """One deployed app and all its successors."""

    def __init__(
        self, backend: Backend, find: Callable[[], Awaitable[FoundApp]], drain_s: float
    ) -> None:
        """``find`` reads the artifact; it raises if there is nothing to serve."""
        self._backend = backend
        self._find = find
        self._drain_s = drain_s
        self._found: FoundApp | None = None
        #: Why no app can be served, or an empty string.
        self.problem = ""
        self._service: AppService | None = None
        self._reloading: asyncio.Task[Reloaded] | None = None
        #: Why the last reload failed, as it was logged.
        self._told = ""

    @property
    def service(self) -> AppService | None:
        """Return the service that gets the next request; None before an app exists."""
        return self._service

    @property
    def generated(self) -> bool:
        """Return whether the client generated the app, which then must not see ``/execute``."""
        return self._found is None or self._found.app.generated

    def serve(self, found: FoundApp) -> None:
        """Load an app; it gets all requests from now on."""
        self.problem = ""
        self._take_over(found, self._backend.open_app(found.app))

    def release(self) -> None:
        """Release the app: the pool has stopped, and none of its processes is left."""
        found, self._found = self._found, None
        if found is not None:
            found.release()

    async def reload(self) -> Reloaded:
        """Prepare the artifact again, and serve it. Concurrent callers get the same outcome."""
        return await self._looking(asked=True)

    @property
    def is_hopeless(self) -> bool:
        """Return whether the app cannot be loaded, but another artifact may be."""
        if self._found is None or self._service is None:
            return False
        return bool(self._found.content) and self._service.state is AppState.FAILED

    async def look_again(self) -> None:
        """If the app cannot be loaded, serve another artifact if there is one.

        Files that change in place are read at each retry anyway.
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
        except Exception as error:  # noqa: BLE001 - the caller gets the reason
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
        """Return whether the app that is served has the same files."""
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
        # The old app's directory may be gone; then loading it again fails like the new app.
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
