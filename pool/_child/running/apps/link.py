"""What the requests of an app worker share: its channel, its ledger, its loop."""

from __future__ import annotations

from ... import app_messages

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    import mmap
    from typing import Any

    from ..resident_link import ResidentLink


class AppLink:
    """The channel, the ledger, and the exchanges that are under way, by number."""

    def __init__(
        self,
        resident: ResidentLink,
        ledger: mmap.mmap,
        loop: asyncio.AbstractEventLoop,
        *,
        once: bool,
    ) -> None:
        #: Whether there is one request only: its end is told in any case.
        self.once = once
        self.resident = resident
        self.ledger = ledger
        self.loop = loop
        self.exchanges: dict[int, Any] = {}
        #: What the application's start-up left for requests; None: it has no lifespan.
        self.state: dict[str, Any] | None = None
        #: Why nothing can be sent any more.
        self.failure: OSError | None = None

    def send(self, kind: int, meta: bytes, body: bytes = b"") -> None:
        """Send a frame; one that cannot go is the worker's end, and not what its sender did."""
        try:
            self.resident.send_frame(kind, meta, body, [])
        except OSError as error:
            self.fail(error)

    def fail(self, error: OSError) -> None:
        """Nothing can be received or sent any more."""
        self.failure = self.failure or error
        self.loop.stop()

    def begins(self, slot: int, number: int) -> None:
        """A request enters the application from here on."""
        app_messages.ENTRY.pack_into(self.ledger, slot * app_messages.ENTRY.size, number)
