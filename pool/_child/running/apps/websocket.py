"""One WebSocket in an app worker: what the application receives and sends.

    REQUEST, MESSAGE*, CLOSING --> messages --> receive()     CREDIT back for messages read
    send(accept) --> ACCEPTED    send(send) --> MESSAGE*      as far as CREDIT allows
    send(close) --> CLOSING      send(http.response.*) --> RESPONSE, PIECE*, as for a request

A long message travels in several pieces. The received part of an incomplete message is credited as
soon as the application waits for the message; otherwise, a message longer than the window would
never be complete.

If the application sends an invalid message, an exception is raised in it, with uvicorn's message.
"""

from __future__ import annotations

import asyncio

from ... import app_messages, wire
from .exchange import Exchange

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .exchange import Message
    from .link import AppLink

#: Close codes: closed without a status; closed abnormally.
_NO_STATUS = 1005
_ABNORMAL = 1006


class ClientDisconnected(OSError):
    """The client has disconnected; frameworks know an exception of this name from other servers."""


class SocketExchange(Exchange):
    """A WebSocket, from its request to its end."""

    __slots__ = (
        "accepted",
        "closed",
        "code",
        "connected",
        "messages",
        "reason",
        "sending",
        "uncredited",
    )

    def __init__(self, link: AppLink, frame: wire.Frame) -> None:
        super().__init__(link, frame)
        scope_of_socket(self.scope)
        self.pieces = []
        #: Complete messages: whether text, the data, and its share of the window.
        self.messages: list[tuple[bool, bytes, int]] = []
        self.uncredited = 0
        self.connected = False
        self.accepted = False
        #: Whether either side has closed the WebSocket, the close code, and the reason.
        self.closed = False
        self.code = _NO_STATUS
        self.reason = ""
        self.sending = asyncio.Lock()

    # From the client.

    def take_message(self, piece: bytes, flags: int) -> None:
        """Receive a piece of a message."""
        self.pieces.append(piece)
        self.uncredited += app_messages.weight(piece)
        if not flags & app_messages.MORE:
            text = bool(flags & app_messages.TEXT)
            self.messages.append((text, b"".join(self.pieces), self.uncredited))
            self.pieces = []
            self.uncredited = 0
        self.wake()

    def close(self, code: int, reason: str) -> None:
        """Note that the client has closed the WebSocket, or has disconnected."""
        self.gone = True
        self.end(code, reason)

    def end(self, code: int, reason: str) -> None:
        if not self.closed:
            self.closed, self.code, self.reason = True, code, reason
        self.wake()

    # From the application.

    async def receive(self) -> Message:
        """Return the next event: the connection, each message, or, once, the disconnect."""
        if not self.connected:
            self.connected = True
            return {"type": "websocket.connect"}
        while True:
            if self.messages:
                text, data, weight = self.messages.pop(0)
                self.give_credit(weight)
                content = {"text": data.decode()} if text else {"bytes": data}
                return {"type": "websocket.receive", **content}
            if self.closed and not self.told_end:
                self.told_end = True
                return {
                    "type": "websocket.disconnect",
                    "code": self.code,
                    "reason": self.reason,
                }
            if self.uncredited:
                self.give_credit(self.uncredited)
                self.uncredited = 0
            await self.wait()

    async def send(self, message: Message) -> None:
        """Send an acceptance, a message, a close, or a response instead of an acceptance."""
        if self.gone:
            raise ClientDisconnected
        kind = message["type"]
        if self.head is not None:
            await self.send_denial(kind, message)
        elif self.closed:
            raise RuntimeError(
                f"Unexpected ASGI message '{kind}', after sending 'websocket.close'."
            )
        elif self.accepted:
            await self.send_accepted(kind, message)
        else:
            self.send_first(kind, message)

    def send_first(self, kind: str, message: Message) -> None:
        if kind == "websocket.accept":
            _, fields = self.checked({"status": 101, "headers": message.get("headers", ())})
            meta = app_messages.pack_accepted(self.number, message.get("subprotocol") or "", fields)
            self.accepted = self.started = True
            self.link.send(wire.ACCEPTED, meta)
        elif kind == "websocket.close":
            self.send_closing(_ABNORMAL, "")
        elif kind == "websocket.http.response.start":
            self.head = self.checked(message)
        else:
            raise RuntimeError(
                "Expected ASGI message 'websocket.accept', 'websocket.close' "
                f"or 'websocket.http.response.start' but got '{kind}'."
            )

    async def send_denial(self, kind: str, message: Message) -> None:
        if self.answered or kind != "websocket.http.response.body":
            raise RuntimeError(
                f"Expected ASGI message 'websocket.http.response.body' but got '{kind}'."
            )
        more = bool(message.get("more_body", False))
        await self.send_body(message.get("body", b""), more)
        if not more:
            self.end(_ABNORMAL, "")

    async def send_accepted(self, kind: str, message: Message) -> None:
        if kind == "websocket.send":
            data = message.get("bytes")
            flags = 0
            if data is None and (text := message.get("text")) is not None:
                data, flags = text.encode(), app_messages.TEXT
            if data is not None:
                await self.send_message(data, flags)
        elif kind == "websocket.close":
            self.send_closing(int(message.get("code", 1000)), message.get("reason") or "")
        else:
            raise RuntimeError(
                f"Expected ASGI message 'websocket.send' or 'websocket.close', but got '{kind}'."
            )

    async def send_message(self, data: bytes, flags: int) -> None:
        if len(data) <= app_messages.PIECE and self.room > 0 and not self.sending.locked():
            self.send_part(data, flags)
            return
        async with self.sending:  # several tasks of the application may send concurrently
            view = memoryview(data)
            end = 0
            while True:
                begin, end = end, end + app_messages.PIECE
                while self.room <= 0 and not self.gone:
                    await self.wait()
                if self.gone:
                    raise ClientDisconnected
                last = end >= len(view)
                more = 0 if last else app_messages.MORE
                self.send_part(bytes(view[begin:end]), flags | more)
                if last:
                    return

    def send_part(self, piece: bytes, flags: int) -> None:
        self.room -= app_messages.weight(piece)
        self.link.send(wire.MESSAGE, app_messages.pack_flags(self.number, flags), piece)

    def send_closing(self, code: int, reason: str) -> None:
        self.end(code, reason)
        self.link.send(wire.CLOSING, app_messages.pack_closing(self.number, code, reason))

    # The WebSocket's task.

    def how_it_returned(self) -> int:
        if self.accepted or self.closed or self.answered or self.gone:
            return app_messages.FINE
        self.say("ASGI callable returned without completing handshake.")
        return app_messages.UNANSWERED

    def how_it_raised(self, error: BaseException) -> int:
        if isinstance(error, ClientDisconnected):
            return app_messages.FINE
        return super().how_it_raised(error)


def exchange_of(link: AppLink, frame: wire.Frame) -> Exchange:
    """Create the exchange of a request, or of a WebSocket."""
    flags = frame.meta[wire.NUMBER.size]
    return (SocketExchange if flags & app_messages.SOCKET else Exchange)(link, frame)


def scope_of_socket(scope: dict[str, Any]) -> None:
    """Turn a request's scope into that of a WebSocket, as uvicorn does."""
    del scope["method"]
    scope["type"] = "websocket"
    scope["asgi"]["spec_version"] = "2.4"
    scope["subprotocols"] = [
        token.strip()
        for name, value in scope["headers"]
        if name == b"sec-websocket-protocol"
        for token in value.decode("latin-1").split(",")
    ]
    scope["extensions"] = {"websocket.http.response": {}}
