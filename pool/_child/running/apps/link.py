"""Shared by all requests of an app worker: channel, ledger and loop; and the routing of output.

print, logging, warnings in a request --> RequestOutput --whole lines--> OUTPUT n, id
outside of requests: imports, other threads, child processes ----------> descriptor 1
"""

from __future__ import annotations

import re

from ... import app_messages, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    import mmap
    from typing import Any

    from ...app_messages import Headers
    from ..resident_link import ResidentLink

#: Most bytes of an unfinished line that are kept back; most bytes of one frame.
_LINE_LIMIT = 8192
_FRAME_LIMIT = 256 * 1024
_REQUEST_ID = b"x-request-id"


class AppLink:
    """The channel, the ledger, and the current exchanges, by number."""

    def __init__(
        self,
        resident: ResidentLink,
        ledger: mmap.mmap,
        loop: asyncio.AbstractEventLoop,
        *,
        once: bool,
        ids: tuple[str, str],
    ) -> None:
        """``ids``: the prefix of request ids, and the pattern of ids that clients may choose."""
        import threading

        self.id_prefix, pattern = ids
        self.given_id = re.compile(pattern.encode())
        #: Held while a request's lines are put together. Reentrant: signal handlers print, too.
        self.printing = threading.RLock()
        #: Whether the worker serves a single request; its end is always reported.
        self.once = once
        self.resident = resident
        self.ledger = ledger
        self.loop = loop
        self.exchanges: dict[int, Any] = {}
        #: The state that the application's start-up provided for requests; None: no lifespan.
        self.state: dict[str, Any] | None = None
        #: Why the channel is unusable, if it is.
        self.failure: OSError | None = None

    def send(self, kind: int, meta: bytes, body: bytes = b"") -> None:
        """Send a frame; an error is not raised here, but ends the worker."""
        try:
            self.resident.send_frame(kind, meta, body, [])
        except OSError as error:
            self.fail(error)

    def fail(self, error: OSError) -> None:
        """Record that the channel is unusable, and stop the loop."""
        self.failure = self.failure or error
        self.loop.stop()

    def begins(self, slot: int, number: int) -> None:
        """Record in the ledger that a request enters the application."""
        app_messages.ENTRY.pack_into(self.ledger, slot * app_messages.ENTRY.size, number)


class RequestOutput:
    """Output of one request, including its threads and tasks."""

    __slots__ = ("app", "closed", "headers", "link", "meta", "number", "over", "rest")

    def __init__(self, app: AppLink, number: int, headers: Headers) -> None:
        self.app = app
        self.number = number
        self.headers = headers
        #: Whether the request is over; its tasks and threads may outlive it.
        self.over = False
        #: For `output_routing`. ``closed`` stays False: code that outlives the request still prints
        #: for it.
        self.link = app.resident
        self.closed = False
        self.meta = b""
        self.rest = b""

    def write(self, data: bytes, kind: int) -> None:
        """Buffer a text, and send each complete line."""
        with self.app.printing:
            data = self.rest + data
            end = len(data) if self.over or len(data) > _LINE_LIMIT else data.rfind(b"\n") + 1
            self.rest = data[end:]
            self.send(data[:end], kind)

    def end(self) -> None:
        """End the request: send its unfinished line, which nothing may complete."""
        self.over = True
        if self.rest:
            with self.app.printing:
                data, self.rest = self.rest, b""
                self.send(data, wire.OUTPUT)

    def send(self, data: bytes, kind: int) -> None:
        if data and not self.meta:
            self.meta = wire.NUMBER.pack(self.number) + self.request_id()
        for at in range(0, len(data), _FRAME_LIMIT):
            self.app.send(kind, self.meta, data[at : at + _FRAME_LIMIT])

    def request_id(self) -> bytes:
        """Return the request's id, as in the front-end: the client's if valid, else its own."""
        given = b""
        for name, value in self.headers:
            if name == _REQUEST_ID:
                given = value
        if self.app.given_id.fullmatch(given):
            return given
        return f"{self.app.id_prefix}-{self.number}".encode()
