"""The lifespan of an application: start-up before the first request, shutdown after the last.

    startup:  task --> app(scope lifespan) --> startup.complete | startup.failed | exception
    shutdown: shutdown --> shutdown.complete, or the task ends

As in uvicorn with ``--lifespan auto``, an application that raises instead of answering has no
lifespan, and is served nevertheless.
"""

from __future__ import annotations

import asyncio
import sys
import traceback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .exchange import Asgi, Message


class StartupFailed(Exception):
    """The application reports that it cannot start."""


class Lifespan:
    """The task in which an application runs its lifespan."""

    def __init__(self, app: Asgi) -> None:
        self.app = app
        #: The state that the start-up provides for requests.
        self.state: dict[str, Any] = {}
        self.failure: str | None = None
        #: Whether the application has no lifespan, or the lifespan is over.
        self.over = False
        self.received: asyncio.Queue[Message] = asyncio.Queue()
        self.started = asyncio.Event()
        self.stopped = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    async def startup(self) -> None:
        """Wait until the application has started.

        Raises:
            StartupFailed: the application reports that its start-up failed.
        """
        self.received.put_nowait({"type": "lifespan.startup"})
        self.task = asyncio.ensure_future(self.run())
        await self.started.wait()
        if self.failure is not None:
            raise StartupFailed(f"the application's start-up failed: {self.failure}")

    async def shutdown(self) -> None:
        """Wait until the application has shut down."""
        if self.over:
            return
        self.received.put_nowait({"type": "lifespan.shutdown"})
        await self.stopped.wait()

    async def run(self) -> None:
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self.state,
        }
        try:
            await self.app(scope, self.received.get, self.send)
        except BaseException:  # also SystemExit: the application has no lifespan
            if self.started.is_set() and self.failure is None:
                print("Exception in 'lifespan' protocol", file=sys.stderr)
                traceback.print_exc()
        self.over = True
        self.started.set()
        self.stopped.set()

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("lifespan.startup.complete", "lifespan.startup.failed"):
            if self.started.is_set():
                raise RuntimeError("Got invalid state transition on lifespan protocol.")
            if kind == "lifespan.startup.failed":
                self.failure = str(message.get("message", "")) or "it gave no reason"
            self.started.set()
        elif kind in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
            if not self.started.is_set() or self.stopped.is_set():
                raise RuntimeError("Got invalid state transition on lifespan protocol.")
            if failure := message.get("message"):
                print(f"the application's shutdown failed: {failure}", file=sys.stderr)
            self.stopped.set()
        else:
            raise RuntimeError(f"Unexpected ASGI message {kind!r} in a lifespan.")
