"""Shared by all requests of an app worker: its channel, ledger and loop; and the routing of output.

print, logging, warnings in a request --> RequestOutput --whole lines--> OUTPUT n, id
what nobody asked for: an import, a thread, a child process ----------> descriptor 1
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

#: Characters of unfinished line kept before they are sent; bytes of one frame.
_LINE_LIMIT = 8192
_FRAME_LIMIT = 256 * 1024
_REQUEST_ID = b"x-request-id"


class AppLink:
    """The channel, the ledger, and the exchanges that are under way, by number."""

    def __init__(
        self,
        resident: ResidentLink,
        ledger: mmap.mmap,
        loop: asyncio.AbstractEventLoop,
        *,
        once: bool,
        ids: tuple[str, str],
    ) -> None:
        """``ids``: the beginning of requests' names, and the pattern of ids that
        clients may give.
        """
        import threading

        self.id_prefix, pattern = ids
        self.given_id = re.compile(pattern.encode())
        #: Lines of requests are put together one after the other; signal handlers print as well.
        self.printing = threading.RLock()
        #: Whether the worker serves a single request, whose end is always reported.
        self.once = once
        self.resident = resident
        self.ledger = ledger
        self.loop = loop
        self.exchanges: dict[int, Any] = {}
        #: The state that the application's start-up left for requests; None: it has no lifespan.
        self.state: dict[str, Any] | None = None
        #: Why nothing can be sent any more.
        self.failure: OSError | None = None

    def send(self, kind: int, meta: bytes, body: bytes = b"") -> None:
        """Send a frame; a failure ends the worker, and does not concern the sender."""
        try:
            self.resident.send_frame(kind, meta, body, [])
        except OSError as error:
            self.fail(error)

    def fail(self, error: OSError) -> None:
        """Fail: no frame can be received or sent any more."""
        self.failure = self.failure or error
        self.loop.stop()

    def begins(self, slot: int, number: int) -> None:
        """A request enters the application from here on."""
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
        #: Attribute that `output_routing` expects; code that outlives the request still prints for
        #: it.
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
        """The request is over: nothing may come that completes the last line."""
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
        """Return the id that the client gave or the front-end chose; they are equal there."""
        given = b""
        for name, value in self.headers:
            if name == _REQUEST_ID:
                given = value
        if self.app.given_id.fullmatch(given):
            return given
        return f"{self.app.id_prefix}-{self.number}".encode()
