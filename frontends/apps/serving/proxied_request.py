"""One request that passes through the front-end: its body to the app, the answer to its client.

    client --receive--> pump --body--> AppService --> worker
    client <--send----- answer <--response, piece, ended--'

Neither side is read faster than the other side accepts data: pieces of the body are sent as far as
the app has given room, and the app gets credit for what the client's connection has accepted.
"""

from __future__ import annotations

import asyncio
from collections import deque

from starlette.types import Receive, Send

from flashpool.frontends.http_server.request_cycle import CUT
from flashpool.pool._child import app_messages
from flashpool.pool.apps import AppEnd, AppService, EndKind, Headers
from flashpool.pool.call_ids import name_bytes

from .answers import with_id

#: Status (0 for a further piece), headers, body, and whether more follows.
_Part = tuple[int, Headers, bytes, bool]


class ProxiedRequest:
    """A sink (`apps.AppSink`) that passes the app's answer to the client."""

    __slots__ = (
        "_loop",
        "_parts",
        "_waiter",
        "_wider",
        "body_room",
        "end",
        "given_id",
        "number",
        "service",
        "started",
        "status",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, service: AppService, given_id: bytes = b""
    ) -> None:
        """``given_id``: the id that the client sent, if it is valid."""
        self._loop = loop
        self.given_id = given_id
        #: The service that has the request; later requests may go to another service.
        self.service = service
        self._parts: deque[_Part] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._wider: asyncio.Future[None] | None = None
        self.number = 0
        #: Bytes of the body that may be sent.
        self.body_room = 0
        self.end: AppEnd | None = None
        #: Whether part of the answer has been sent.
        self.started = False
        #: Status of the answer; 0 before the answer.
        self.status = 0

    @property
    def id(self) -> bytes:
        """Return the id of the request for its client and for both logs."""
        return self.given_id or name_bytes(self.number)

    # The sink.

    def response(self, status: int, headers: Headers, body: bytes, more: bool) -> None:
        """Receive the head of the answer, and the first part of its body."""
        self._parts.append((status, headers, body, more))
        self._wake()

    def piece(self, body: bytes, more: bool) -> None:
        """Receive the next piece of the answer's body."""
        self._parts.append((0, [], body, more))
        self._wake()

    def room(self, size: int) -> None:
        """Allow so many further bytes of the body to be sent."""
        self.body_room += size
        if self._wider is not None and not self._wider.done():
            self._wider.set_result(None)

    def ended(self, end: AppEnd) -> None:
        """End the request: the app sends nothing more."""
        self.end = self.end or end
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # The answer.

    async def _next(self) -> _Part | None:
        """Return the next part of the answer, or None if the answer ended incomplete."""
        while not self._parts:
            if self.end is not None:
                return None
            self._waiter = self._loop.create_future()
            await self._waiter
        return self._parts.popleft()

    async def answer(self, send: Send, close: bool) -> AppEnd | None:
        """Send the answer; return the request's end if that came before any answer."""
        part = await self._next()
        if part is None:
            return self.end
        status, headers, body, more = part
        self.status = status
        headers = with_id(headers, self.id)
        if close:
            headers = [*headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": more})
        self.started = True
        while more:
            self.service.credit(self.number, len(body))
            part = await self._next()
            if part is None:
                await send({"type": CUT})
                return None
            _, _, body, more = part
            await send({"type": "http.response.body", "body": body, "more_body": more})
        self.end = self.end or AppEnd(kind=EndKind.ANSWERED)
        return None

    # The body.

    async def pump(self, receive: Receive, limit: int) -> bool:
        """Pass the rest of the body on, then wait for the client to disconnect.

        Return whether the body was passed on; False if it exceeds ``limit`` bytes.
        """
        while True:
            while self.body_room <= 0:
                self._wider = self._loop.create_future()
                await self._wider
            message = await receive()
            if message["type"] == "http.disconnect":
                return True
            body, more = message.get("body", b""), message.get("more_body", False)
            limit -= len(body)
            if limit < 0:
                return False
            self._pass_on(body, more)
            if not more:
                break
        while (await receive())["type"] != "http.disconnect":
            pass
        return True

    def _pass_on(self, body: bytes, more: bool) -> None:
        self.body_room -= len(body)
        pieces = [
            body[at : at + app_messages.PIECE] for at in range(0, len(body), app_messages.PIECE)
        ]
        for piece in pieces[:-1]:
            self.service.body(self.number, piece, True)
        self.service.body(self.number, pieces[-1] if pieces else b"", more)
