"""One request and its response, which is sent in a single write if possible.

    start --kept--> first of the body --> head and body, together --> more of the body ...

uvicorn sends the head of a response separately. Two packets wake the client twice, which for a
small answer costs more than everything else. ASGI permits holding the head back until the first
part of the body, so this class does.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    RequestResponseCycle,
)

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent

#: A message that breaks off a response which cannot be completed, so that the client notices.
CUT: Final = "flashpool.response.cut"
#: A body of at most so many bytes is copied behind its head; larger bodies are not copied.
_JOINED: Final = 64 * 1024


def has_left(receive: object) -> bool:
    """Return whether the client of a request has disconnected while no code awaits `receive`.

    Code that receives sees the disconnect itself; code that must wait first asks here. Only
    uvicorn's `receive` supports that.
    """
    cycle = getattr(receive, "__self__", None)
    return isinstance(cycle, RequestResponseCycle) and cycle.disconnected


class Cycle(RequestResponseCycle):
    """uvicorn's cycle, with a `send` that joins head and body."""

    #: The head of the response, if it is not sent yet.
    _head: bytes = b""

    async def send(self, message: ASGISendEvent) -> None:
        """Send a part of the response, or hold its head back."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind: str = message["type"]
        if message["type"] == "http.response.start" and not self.response_started:
            self._head = self._make_head(message["status"], message.get("headers", ()))
        elif (
            message["type"] == "http.response.body"
            and not self.response_complete
            and (self.response_started or self._head)
        ):
            self._send_body(message.get("body", b""), more=message.get("more_body", False))
        elif kind == CUT:
            self._cut()
        else:
            raise RuntimeError(f"{kind} is not what comes next in a response")

    def _make_head(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        lines = []
        self.chunked_encoding = None
        closes = dated = False
        for given, value in headers:
            name = given.lower()
            if name == b"content-length":
                # These values differ between answers, so caching them is useless.
                if not value.isdigit():
                    raise RuntimeError("a content-length that is not a number")
                lines.append(b"content-length: %b\r\n" % value)
                if self.chunked_encoding is None:
                    self.expected_content_length, self.chunked_encoding = int(value), False
                continue
            lines.append(_line(name, value))
            if name == b"transfer-encoding" and value.lower() == b"chunked":
                self.expected_content_length, self.chunked_encoding = 0, True
            elif name == b"connection":
                closes = closes or b"close" in map(bytes.strip, value.lower().split(b","))
            dated = dated or name == b"date"
        if closes:
            self.keep_alive = False
        elif not self.keep_alive:
            lines.append(b"connection: close\r\n")
        is_head = self.scope["method"] == "HEAD"
        if self.chunked_encoding is None and status not in (204, 304) and not is_head:
            self.chunked_encoding = True
            lines.append(b"transfer-encoding: chunked\r\n")
        return b"".join((STATUS_LINE[status], *self._own_lines(dated), *lines, b"\r\n"))

    def _own_lines(self, dated: bool) -> list[bytes]:
        """Return the headers that the server adds: its date, unless the application sets one."""
        return [
            _line(name, value)
            for name, value in self.default_headers
            if not (dated and name == b"date")
        ]

    def _send_body(self, body: bytes, *, more: bool) -> None:
        if self.scope["method"] == "HEAD":
            # The client wants the length of the body, not the body.
            body, self.expected_content_length = b"", 0
        elif self.chunked_encoding:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            body += b"" if more else b"0\r\n\r\n"
        else:
            self._count(len(body), more=more)
        head, self._head = self._head, b""
        self.response_started, self.waiting_for_100_continue = True, False
        if head and len(body) > _JOINED:
            self.transport.writelines((head, body))
        elif head or body:
            self.transport.write(head + body)
        if not more:
            self._complete()

    def _cut(self) -> None:
        """Close the connection after the data so far, so the client sees an incomplete response."""
        self.disconnected = True
        self.transport.close()

    def _count(self, size: int, *, more: bool) -> None:
        self.expected_content_length -= size
        if self.expected_content_length < 0:
            raise RuntimeError("the response is longer than its content-length")
        if self.expected_content_length and not more:
            raise RuntimeError("the response is shorter than its content-length")

    def _complete(self) -> None:
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


@lru_cache(maxsize=256)
def _line(name: bytes, value: bytes) -> bytes:
    """Return a header line.

    Raises:
        RuntimeError: the name or the value contains forbidden characters.
    """
    if HEADER_RE.search(name) or HEADER_VALUE_RE.search(value):
        raise RuntimeError("a header that cannot be sent")
    return b"%b: %b\r\n" % (name, value)
