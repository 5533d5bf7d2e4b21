"""One WebSocket that passes through the front-end, as a sink (`apps.SocketSink`).

    client --receive--> pump --message--> AppService --> worker
    client <--send----- serve <--accepted, message, closed, ended--'

As with requests, neither side is read faster than the other accepts data.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, NamedTuple

from starlette.types import Message, Receive, Send

from flashpool.pool._child import app_messages
from flashpool.pool.apps import AppEnd, AppService, EndKind, Headers
from flashpool.pool.call_ids import name_bytes

from .answers import with_id

#: Close frames for a WebSocket that ends without the app closing it.
_CODES: Final = {
    EndKind.CRASHED: 1011,
    EndKind.LOST: 1013,
    EndKind.REFUSED: 1012,
    EndKind.FAILED: 1013,
    EndKind.LATE: 1001,
}
#: Most bytes of a close frame's reason.
_REASON: Final = 123
_TOO_BIG: Final = 1009
#: The client disconnected without a close frame.
_ABNORMAL: Final = 1006


class _Heard(NamedTuple):
    """Something that the app sent: a message for the client, or a piece of one."""

    message: Message | None
    piece: bytes = b""
    more: bool = False
    text: bool = False


class ProxiedSocket:
    """Connects the WebSocket of a client with the app."""

    __slots__ = (
        "_heard",
        "_loop",
        "_most",
        "_room",
        "_waiter",
        "_wider",
        "end",
        "given_id",
        "number",
        "status",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, most: int, given_id: bytes = b"") -> None:
        """``most``: bytes of a message of the app; ``given_id``: the client's id, if valid."""
        self.given_id = given_id
        self._loop = loop
        self._most = most
        self._heard: deque[_Heard] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._wider: asyncio.Future[None] | None = None
        self._room = app_messages.WINDOW
        self.number = 0
        #: Status of the answer to the client: 101, or that of a refusal; 0 before the answer.
        self.status = 0
        self.end: AppEnd | None = None

    @property
    def id(self) -> bytes:
        """Return the id of the WebSocket for its client and for both logs."""
        return self.given_id or name_bytes(self.number)

    # The sink.

    def accepted(self, subprotocol: str, headers: Headers) -> None:
        """Pass on that the app accepted the WebSocket."""
        self.status = 101
        accept: Message = {"type": "websocket.accept", "headers": headers}
        self._hear(_Heard({**accept, "subprotocol": subprotocol or None}))

    def message(self, piece: bytes, more: bool, text: bool) -> None:
        """Receive a piece of a message from the app."""
        self._hear(_Heard(None, piece, more, text))

    def closed(self, code: int, reason: str) -> None:
        """End the WebSocket: the app closed or refused it."""
        self.status = self.status or 403
        self._hear(_Heard(_close(code, reason)))
        self.ended(AppEnd(kind=EndKind.ANSWERED))

    def response(self, status: int, headers: Headers, body: bytes, more: bool) -> None:
        """Receive an HTTP response that the app sends in place of accepting the WebSocket."""
        self.status = status
        kind = "websocket.http.response.start"
        self._hear(_Heard({"type": kind, "status": status, "headers": headers}))
        self.piece(body, more)

    def piece(self, body: bytes, more: bool) -> None:
        """Receive the next piece of that response's body."""
        kind = "websocket.http.response.body"
        self._hear(_Heard({"type": kind, "body": body, "more_body": more}, body))
        if not more:
            self.ended(AppEnd(kind=EndKind.ANSWERED))

    def room(self, size: int) -> None:
        """Allow further data of this weight to be sent."""
        self._room += size
        if self._wider is not None and not self._wider.done():
            self._wider.set_result(None)

    def ended(self, end: AppEnd) -> None:
        """End the WebSocket: the app sends nothing more."""
        self.end = self.end or end
        self._wake()

    def _hear(self, heard: _Heard) -> None:
        if self.end is None:
            self._heard.append(heard)
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # To the client.

    async def serve(self, service: AppService, send: Send) -> AppEnd | None:
        """Pass on what the app sends; return the end if the client has no answer yet."""
        begun = False
        while (heard := await self._next()) is not None:
            begun = True
            if heard.message is None:
                await self._pass_message(service, heard, send)
            else:
                if "headers" in heard.message:
                    heard.message["headers"] = with_id(heard.message["headers"], self.id)
                await send(heard.message)
                if heard.piece:
                    service.credit(self.number, len(heard.piece))
        assert self.end is not None
        if not begun:
            return self.end
        # Without a code, the app closed the WebSocket, or raised: then uvicorn closes it.
        if (code := _CODES.get(self.end.kind)) is not None:
            await send(_close(code, self.end.message))
        return None

    async def _next(self) -> _Heard | None:
        while not self._heard:
            if self.end is not None:
                return None
            self._waiter = self._loop.create_future()
            await self._waiter
        return self._heard.popleft()

    async def _pass_message(self, service: AppService, heard: _Heard, send: Send) -> None:
        pieces = [heard.piece]
        size = len(heard.piece)
        part: _Heard | None = heard
        while part is not None and part.more:
            service.credit(self.number, app_messages.weight(part.piece))
            part = await self._next()
            if part is not None:
                pieces.append(part.piece)
                size += len(part.piece)
            if size > self._most:
                service.leave(self.number, _TOO_BIG, "a message of the app is too large")
                self._heard.clear()
                self.ended(AppEnd(kind=EndKind.ANSWERED))
                await send(_close(_TOO_BIG, "a message is larger than FLASHPOOL_MAX_BODY_MB"))
                return
        if part is None:
            return
        data = b"".join(pieces)
        content = {"text": data.decode("utf-8", "replace")} if heard.text else {"bytes": data}
        await send({"type": "websocket.send", **content})
        service.credit(self.number, app_messages.weight(part.piece))

    # From the client.

    async def pump(self, service: AppService, receive: Receive) -> None:
        """Pass on what the client sends, until the client closes or disconnects."""
        while (message := await receive())["type"] != "websocket.disconnect":
            text = message.get("text")
            data = message.get("bytes") or b"" if text is None else text.encode()
            end = 0
            while True:
                begin, end = end, end + app_messages.PIECE
                while self._room <= 0:
                    self._wider = self._loop.create_future()
                    await self._wider
                piece, more = data[begin:end], end < len(data)
                self._room -= app_messages.weight(piece)
                service.message(self.number, piece, more=more, text=text is not None)
                if not more:
                    break
        code, reason = message.get("code", _ABNORMAL), message.get("reason") or ""
        service.leave(self.number, code, reason)
        self.ended(AppEnd(kind=EndKind.ANSWERED))


def _close(code: int, reason: str) -> Message:
    reason = reason.encode()[:_REASON].decode("utf-8", "ignore")
    return {"type": "websocket.close", "code": code, "reason": reason}
