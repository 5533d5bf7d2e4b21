"""How an app is waited for: until it is loaded or cannot be, and until it has nothing left to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from flashpool.pool.apps import AppState


class RetiringApp:
    """An app that others wait for; `looked_around` is called whenever that may be over."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._settled = asyncio.Event()
        self._idle = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def state(self) -> AppState:
        """Whether requests are served."""
        raise NotImplementedError

    @property
    def busy(self) -> int:
        """What has not ended."""
        raise NotImplementedError

    def close(self) -> None:
        """Take no more requests, and let the workers shut down."""
        raise NotImplementedError

    async def settled(self) -> AppState:
        """Wait until it is loaded, or cannot be."""
        await self._settled.wait()
        return self.state

    def retire(self, within_s: float, then: Callable[[], None]) -> None:
        """Let it finish the requests it has, and leave."""
        task = asyncio.ensure_future(self._retire(within_s, then))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def looked_around(self) -> None:
        """Something changed that others may wait for."""
        if self.state is not AppState.LOADING:
            self._settled.set()
        if not self.busy:
            self._idle.set()
        self._changed()

    async def _retire(self, within_s: float, then: Callable[[], None]) -> None:
        try:
            await asyncio.wait_for(self._until_idle(), within_s)
        except asyncio.TimeoutError:
            pass
        self.close()
        then()

    async def _until_idle(self) -> None:
        while self.busy:
            self._idle.clear()
            await self._idle.wait()
