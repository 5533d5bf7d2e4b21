"""Stops a server: the first signal begins a drain, the second ends it.

    first signal --> drain --(nothing is left | FLASHPOOL_DRAIN_S | second signal)--> stop

Calls that have not finished are then cancelled; their error names the limit or the second signal.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from .service import Service

__all__ = ["Shutdown", "drain", "words_for_cancelled"]

_log = logging.getLogger(__name__)


def words_for_cancelled(what: str, second_signal: asyncio.Event) -> str:
    """Return why a call or a job was cancelled when the server stopped, for its error."""
    why = "a second signal" if second_signal.is_set() else "FLASHPOOL_DRAIN_S"
    return f"the server stopped before the {what} had finished ({why})"


async def drain(
    service: Service, drain_s: float, second_signal: asyncio.Event, *, what: str = "call"
) -> str:
    """Wait for calls to finish, for at most ``drain_s``; return `words_for_cancelled`."""
    drained = asyncio.ensure_future(service.drain(drain_s))
    hurried = asyncio.ensure_future(second_signal.wait())
    try:
        await asyncio.wait({drained, hurried}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        drained.cancel()
        hurried.cancel()
    return words_for_cancelled(what, second_signal)


class Shutdown:
    """The shutdown of one server; on its loop."""

    def __init__(
        self,
        service: Service,
        drain_s: float,
        then: Callable[[], None] = lambda: None,
        *,
        what: str = "call",
    ) -> None:
        """``then`` is called at the end, even after an error; ``what``: call or job."""
        self._what = what
        self._service = service
        self._drain_s = drain_s
        self._then = then
        self._second_signal = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    def on_signal(self, name: str) -> None:
        """Begin the drain at the first signal; end the drain at the second."""
        if self._running is None:
            running = self._counted(self._service.pool.unfinished)
            _log.info("%s: draining for at most %g s: %s to finish", name, self._drain_s, running)
            self._running = asyncio.ensure_future(self._run())
        else:
            _log.info("%s again: stopping at once", name)
            self._second_signal.set()

    async def _run(self) -> None:
        try:
            reason = await drain(self._service, self._drain_s, self._second_signal, what=self._what)
            before, left = self._cancelled(), self._requests()
            await self._service.stop(reason)
            cancelled = self._cancelled() - before + left
            _log.info("Stopped; %s cancelled", self._counted(cancelled))
        finally:
            self._then()

    def _cancelled(self) -> int:
        return int(self._service.pool.stats().outcomes.get("Cancelled", 0))

    def _requests(self) -> int:
        """Count requests of apps separately: they are not calls, and have no outcome."""
        apps = self._service.pool.stats().apps
        return sum(worker.requests for app in apps for worker in app.workers)

    def _counted(self, number: int) -> str:
        return f"{number} {self._what}{'' if number == 1 else 's'}"

    def abandon(self) -> None:
        """Cancel the shutdown: the server has stopped in another way."""
        if self._running is not None:
            self._running.cancel()
