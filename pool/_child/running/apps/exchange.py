"""One request in an app worker: what the application receives and sends.

    REQUEST, BODY*, DISCONNECT --> pieces --> receive()     CREDIT back for parts that are read
    send(start) --kept--> send(body) --> RESPONSE, PIECE*   as far as CREDIT allows

The head of an answer waits for the first part of the body: that makes one message instead of two,
and an application that dies between the two has not begun to answer. Pieces of a body are a list
until they are read: a growing `bytes` object would be copied repeatedly if the application is slow.

If the application sends an invalid message, an exception is raised in it, with uvicorn's message.
"""

from __future__ import annotations

import asyncio
import re
import sys
import traceback

from ... import app_messages, wire
from .. import output_routing
from .link import RequestOutput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any

    from .link import AppLink

    Message = dict[str, Any]
    Asgi = Callable[
        [Message, Callable[[], Awaitable[Message]], Callable[..., Awaitable[None]]], Any
    ]

_NAME = re.compile(rb"[\x00-\x1f\x7f()<>@,;:\[\]={} \t\\\"]")
_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_GONE: Message = {"type": "http.disconnect"}
_TURN = app_messages.WINDOW // 4


class Exchange:
    """A request and its answer."""

    __slots__ = (
        "answered",
        "asked_for",
        "credit",
        "event",
        "gone",
        "has_begun",
        "head",
        "left",
        "lingers",
        "link",
        "method",
        "more",
        "number",
        "over",
        "pieces",
        "room",
        "scope",
        "slot",
        "started",
        "task",
        "told_end",
    )

    def __init__(self, link: AppLink, frame: wire.Frame) -> None:
        number, flags, slot, fields = app_messages.unpack_request(frame.meta)
        self.link = link
        self.number = number
        self.slot = slot
        self.scope = scope_of(fields, link.state)
        self.method: str = self.scope["method"]
        self.task: asyncio.Task[None] | None = None
        self.has_begun = False
        # The body; ``credit``: bytes that were read and are not credited yet.
        self.pieces: list[bytes] = [frame.body] if frame.body else []
        self.more = bool(flags & app_messages.MORE)
        self.asked_for = not flags & app_messages.ASKED_FOR
        self.credit = 0
        self.told_end = False
        self.gone = False
        # The answer; ``left``: bytes still to come by Content-Length; ``room``: bytes that may be
        # sent now.
        self.head: tuple[int, list[bytes]] | None = None
        self.left: int | None = None
        self.room = app_messages.WINDOW
        self.started = False
        self.answered = False
        self.over = False
        #: Whether LINGERS was sent: the task continues after the answer.
        self.lingers = False
        self.event: asyncio.Event | None = None

    # From the client.

    def take(self, body: bytes, more: bool) -> None:
        """Receive a piece of the request's body."""
        if body:
            self.pieces.append(body)
        self.more = more
        self.wake()

    def leave(self) -> None:
        """Note that the client has disconnected."""
        self.gone = True
        self.wake()

    def add_room(self, size: int) -> None:
        """Add credit: the client has accepted ``size`` bytes of the answer."""
        self.room += size
        self.wake()

    def wake(self) -> None:
        if self.event is not None:
            self.event.set()

    async def wait(self) -> None:
        """Wait until something arrives."""
        if self.event is None:
            self.event = asyncio.Event()
        self.event.clear()
        await self.event.wait()

    # From the application.

    async def receive(self) -> Message:
        """Return the next part of the body; after the last, wait for the disconnect."""
        if not self.asked_for:
            self.asked_for = True
            self.give_credit(app_messages.WINDOW)
        while not (self.gone or self.answered):
            if self.pieces or not (self.more or self.told_end):
                return self.next_part()
            await self.wait()
        return dict(_GONE)

    def next_part(self) -> Message:
        pieces, self.pieces = self.pieces, []
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self.told_end = not self.more
        if self.more:
            self.credit += len(body)
            if self.credit >= _TURN:
                self.give_credit(self.credit)
                self.credit = 0
        return {"type": "http.request", "body": body, "more_body": self.more}

    def give_credit(self, size: int) -> None:
        self.link.send(wire.CREDIT, app_messages.pack_credit(self.number, size))

    async def send(self, message: Message) -> None:
        """Send the next part of the answer."""
        if self.gone:
            return
        kind = message["type"]
        if self.head is None:
            if kind != "http.response.start":
                raise RuntimeError(
                    f"Expected ASGI message 'http.response.start', but got '{kind}'."
                )
            self.head = self.checked(message)
        elif self.answered:
            raise RuntimeError(
                f"Unexpected ASGI message '{kind}' sent, after response already completed."
            )
        elif kind != "http.response.body":
            raise RuntimeError(f"Expected ASGI message 'http.response.body', but got '{kind}'.")
        else:
            await self.send_body(message.get("body", b""), bool(message.get("more_body", False)))

    async def send_body(self, body: bytes, more: bool) -> None:
        if self.method == "HEAD":
            body = b""
        elif self.left is not None:
            self.count(len(body), more)
        if len(body) <= app_messages.PIECE and self.room > 0:
            self.send_piece(body, more)
        else:
            await self.send_pieces(memoryview(body), more)

    async def send_pieces(self, body: memoryview, more: bool) -> None:
        """Cut a part of the body into pieces, and send each when there is credit."""
        at = 0
        while True:
            while self.room <= 0 and not self.gone:
                await self.wait()
            if self.gone:
                return
            end = at + app_messages.PIECE
            last = end >= len(body)
            self.send_piece(bytes(body[at:end]), more or not last)
            at = end
            if last:
                return

    def send_piece(self, body: bytes, more: bool) -> None:
        self.room -= len(body)
        if not self.started:
            assert self.head is not None
            self.started = True
            status, fields = self.head
            meta = app_messages.pack_response(self.number, status, more, fields)
            self.link.send(wire.RESPONSE, meta, body)
        elif body or not more:
            self.link.send(wire.PIECE, app_messages.pack_flags(self.number, more), body)
        if not more:
            self.answered = True
            self.wake()
            self.link.loop.call_soon(self.look_whether_over)

    def checked(self, message: Message) -> tuple[int, list[bytes]]:
        """Check the head of an answer; return status and headers.

        Raises:
            RuntimeError: they cannot be sent.
        """
        status = message["status"]
        if not isinstance(status, int) or not 100 <= status <= 599:
            raise RuntimeError(f"Invalid HTTP status: {status!r}")
        fields: list[bytes] = []
        self.left, length = None, None
        chunked = False
        for name, value in message.get("headers", ()):
            if _NAME.search(name):
                raise RuntimeError(f"Invalid HTTP header name: {name!r}")
            if _VALUE.search(value):
                raise RuntimeError(f"Invalid HTTP header value of {name!r}: {value!r}")
            lower = name.lower()
            if lower == b"content-length" and length is None:
                length = int(value)
            elif lower == b"transfer-encoding" and value.lower() == b"chunked":
                chunked = True
            fields += (bytes(lower), bytes(value))
        if not chunked:
            self.left = length
        return int(status), fields

    def count(self, size: int, more: bool) -> None:
        assert self.left is not None
        if size > self.left:
            raise RuntimeError("Response content longer than Content-Length")
        self.left -= size
        if self.left and not more:
            raise RuntimeError("Response content shorter than Content-Length")

    # The request's task.

    async def run(self, app: Asgi) -> None:
        """Run the application for the request; never raises."""
        how = app_messages.FINE
        self.has_begun = True
        output = RequestOutput(self.link, self.number, self.scope["headers"])
        output_routing.current.set(output)
        try:
            if not self.gone:
                self.link.begins(self.slot, self.number)
                await app(self.scope, self.receive, self.send)
                how = self.how_it_returned()
        except asyncio.CancelledError:
            how = app_messages.CANCELLED
        except BaseException as error:  # even SystemExit ends only this request
            how = self.how_it_raised(error)
        self.over = True
        output.end()
        del self.link.exchanges[self.number]
        if how != app_messages.FINE or self.lingers or not self.answered or self.link.once:
            meta = app_messages.pack_flags(self.number, how)
            self.link.send(wire.REQUEST_OVER, meta)

    def how_it_returned(self) -> int:
        if self.answered or self.gone:
            return app_messages.FINE
        if not self.started:
            self.say("ASGI callable returned without starting response.")
            return app_messages.UNANSWERED
        self.say("ASGI callable returned without completing response.")
        return app_messages.CUT

    def how_it_raised(self, error: BaseException) -> int:
        self.say("Exception in ASGI application")
        ours = error.__traceback__
        traceback.print_exception(type(error), error, ours.tb_next if ours else None)
        if self.answered or self.gone:
            return app_messages.FINE
        return app_messages.CUT if self.started else app_messages.UNANSWERED

    def say(self, what: str) -> None:
        target = f"{self.method} {self.scope['path']}"
        print(f"{what} ({target!r})", file=sys.stderr)

    def look_whether_over(self) -> None:
        """Report LINGERS if the task continues; called one turn of the loop after the answer."""
        if not self.over:
            self.link.send(wire.LINGERS, wire.NUMBER.pack(self.number))
            self.lingers = True


def scope_of(fields: list[bytes], state: dict[str, Any] | None) -> Message:
    """Return the scope of a request, as uvicorn creates it."""
    connection, method, version, path, raw_path, query, *_ = fields
    scheme, root_path, client, server = app_messages.unpack_connection(connection)
    scope: Message = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": version.decode(),
        "server": server,
        "client": client,
        "scheme": scheme,
        "method": method.decode(),
        "root_path": root_path,
        "path": path.decode("utf-8", "surrogatepass"),
        "raw_path": raw_path,
        "query_string": query,
        "headers": app_messages.paired(fields, 6),
    }
    if state is not None:
        scope["state"] = state.copy()
    return scope
