"""Other services on an engine's loop, beside the backend, such as an admin listener.

any thread: attach, detach -----> loop: start, stop
                                  loop: stop_all, after the backend has stopped
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol, TypeVar

from flashpool.pool.backend import Backend
from flashpool.pool.errors import PoolClosed

#: Seconds between two checks whether the loop still exists.
_LOOK_S: Final = 0.5


class Attachment(Protocol):
    """A service on the loop; must not block it."""

    async def start(self) -> None:
        """Begin."""

    async def stop(self) -> None:
        """Stop; do nothing if stopped already."""


_Attached = TypeVar("_Attached", bound=Attachment)
_Result = TypeVar("_Result")


class Attachments:
    """The attachments of one engine."""

    def __init__(self, loop: asyncio.AbstractEventLoop, backend: Backend) -> None:
        self._loop = loop
        self._backend = backend
        self._attached: list[Attachment] = []
        self._over = False

    def attach(self, make: Callable[[Backend], _Attached]) -> _Attached:
        """Make and start an attachment; return when it has started. Not from the loop's thread.

        Raises:
            PoolClosed: the pool has been shut down.
        """
        return self._wait(self._attach(make))

    async def _attach(self, make: Callable[[Backend], _Attached]) -> _Attached:
        if self._over:
            raise PoolClosed("the pool is shut down")
        one = make(self._backend)
        self._attached.append(one)
        await one.start()
        return one

    def detach(self, one: Attachment) -> None:
        """Stop an attachment; return when it has stopped. Not from the loop's thread."""
        try:
            self._wait(self._detach(one))
        except PoolClosed:
            return

    async def _detach(self, one: Attachment) -> None:
        if one in self._attached:
            self._attached.remove(one)
            await one.stop()

    async def stop_all(self) -> None:
        """Stop all attachments, because the backend has stopped. Loop thread."""
        self._over = True
        while self._attached:
            await self._attached.pop().stop()

    def _wait(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        if self._loop.is_closed():
            work.close()
            raise PoolClosed("the pool is shut down")
        done = asyncio.run_coroutine_threadsafe(work, self._loop)
        while True:
            try:
                return done.result(timeout=_LOOK_S)
            except concurrent.futures.TimeoutError:
                # A loop that was closed meanwhile never runs the function.
                if self._loop.is_closed():
                    raise PoolClosed("the pool is shut down") from None
