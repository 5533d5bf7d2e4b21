"""One connection: uvicorn's HTTP protocol with further deadlines and limits.

uvicorn only times out connections that are idle between requests. A client that sends a byte now
and then, or never reads, would hold its connection and its response forever. Here a connection
records when the current message began, and when its client last read a byte; `Listener` checks all
connections twice a second. No timer is created per request.

    connected ----> headers ----> body ----> complete --(next byte)--> headers ...
       |__ header_s ______|         |            `--> response --> taken by the client
       |____________ message_s _____|                    |__ send_s since the last byte __|

The parser is fed in pieces, and fed nothing while a complete request is being answered: pipelined
input waits as bytes, and reading pauses. While reading is paused, asyncio does not report that the
client has disconnected, so `check` asks the socket.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from . import sockets
from .request_cycle import Cycle

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

#: Most bytes of request line and headers, of trailers, and of the data between two chunks.
HEADERS_LIMIT: Final = 64 * 1024
#: Bytes fed to the parser at once. Between pieces, limits are checked and feeding may stop.
_PIECE: Final = 16 * 1024
#: Seconds that a refused client may continue to send, so that it reads the answer: closing at once
#: would reset the connection first.
_LINGER_S: Final = 2.0

#: Characters of a request target that needs no decoding.
_PLAIN: Final = b"/_-abcdefghijklmnopqrstuvwxyz0123456789"

_CLOSE: Final = b"connection: close\r\ncontent-length: 0\r\n\r\n"
_BAD: Final = b"HTTP/1.1 400 Bad Request\r\n" + _CLOSE
_TOO_SLOW: Final = b"HTTP/1.1 408 Request Timeout\r\n" + _CLOSE
_TOO_LONG: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\n" + _CLOSE


class _RefusedError(Exception):
    """Stops the parser; ``response`` holds the answer."""

    def __init__(self, response: bytes) -> None:
        super().__init__(response)
        self.response = response


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Time limits of a connection, in seconds."""

    #: Seconds for a request's headers, and for the whole request.
    header_s: float
    message_s: float
    #: Seconds without the client reading a byte of the response.
    send_s: float
    #: Seconds between two requests.
    idle_s: float


class Connection(HttpToolsProtocol):
    """A connection that records since when it has been waiting for its client."""

    #: The part of `connection_limit` that connections of this class may use.
    share: float = 1.0
    #: When the current message began; None between messages.
    since: float | None = None
    #: When the last response was complete; None while a request is unanswered.
    _idle_since: float | None = None
    #: A request that starts after the current piece of input has been parsed.
    _begun: Cycle | None = None
    #: The answer that follows all earlier responses; after that nothing is received.
    _last_word: bytes | None = None
    #: When that answer was sent.
    _refused_at: float | None = None
    _in_headers: bool = True
    #: Bytes since the message began, or since the last part of its body.
    _empty_bytes: int = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Requests whose headers have arrived; the first of these is being answered.
        self._unanswered: deque[RequestResponseCycle] = deque()
        #: Bytes that were received, and not yet fed to the parser.
        self._held = bytearray()
        self._outflow = sockets.Outflow()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for the first message; if there are too many connections, close one."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self.since = self.loop.time()
        if len(self.connections) > self.share * sockets.connection_limit():
            self._closed_for_room().transport.close()

    def _closed_for_room(self) -> Connection:
        """Return the connection to close: the longest unused, or this one if all are in use.

        Clients keep connections that they may never use again, and health checks must get in.
        """
        idle = [one for one in self.connections if isinstance(one, Connection)]
        idle = [one for one in idle if one.unused_since < self.unused_since]
        return min(idle, key=lambda one: one.unused_since, default=self)

    @property
    def unused_since(self) -> float:
        """Return when the last response ended or the connection opened; infinity if in use."""
        if self.transport.is_closing():
            return math.inf
        if self._idle_since is not None:
            return self._idle_since
        if self.since is not None and not self._empty_bytes and not self._unanswered:
            return self.since
        return math.inf

    def connection_lost(self, exc: Exception | None) -> None:
        """Notify every request; uvicorn notifies only the newest, which may not have begun."""
        super().connection_lost(exc)
        self._held.clear()
        self._tell_of_end()

    def _tell_of_end(self) -> None:
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()

    # Receiving

    def data_received(self, data: bytes) -> None:
        """Feed the parser, or keep the data for later."""
        if self._last_word is not None:
            return
        if self._held or len(data) > _PIECE or (self._unanswered and self._answering()):
            self._held += data
            self._feed_held()
        else:
            self._feed(data)

    def _answering(self) -> bool:
        """Return whether a complete request waits for its response: further input must wait."""
        return bool(self._unanswered) and not self._unanswered[0].more_body

    def _feed_held(self) -> None:
        while self._held and not self._answering() and not self.transport.is_closing():
            piece = self._held[:_PIECE]
            del self._held[:_PIECE]
            self._feed(piece)
        if self._held:
            self.flow.pause_reading()

    def _feed(self, piece: bytes | bytearray) -> None:
        # This replaces uvicorn's data_received, which drops the body of an upgrade.
        self._idle_since = None
        if self.since is None and self._in_headers:
            self.since = self.loop.time()
        self._empty_bytes += len(piece)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            rest = piece[upgrade.args[0] :]
            if self._should_upgrade() and not self._unanswered:
                self._become_socket(bytes(rest))
                return
            self._feed(self._head_without_upgrade())
            if rest:
                self._feed(rest)
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause.response if isinstance(cause, _RefusedError) else _BAD)
        else:
            if self._empty_bytes > HEADERS_LIMIT:
                self._refuse(_TOO_LONG)
        begun, self._begun = self._begun, None
        if begun is not None:
            self._start_asgi_task(begun, self.app)

    def _become_socket(self, rest: bytes) -> None:
        """Switch to the WebSocket protocol, beginning with the head that was just parsed."""
        self.scope["method"] = self.parser.get_method().decode("ascii")
        self.handle_websocket_upgrade()
        if rest:
            self.transport.get_protocol().data_received(rest)  # type: ignore[attr-defined]

    def _head_without_upgrade(self) -> bytes:
        """Return the head just parsed, without its upgrade, to parse it again with its body."""
        self._in_headers = True
        version = self.parser.get_http_version().encode("ascii")
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/", version, b"\r\n"]
        for name, value in self.headers:
            if name != b"upgrade":
                head += [name, b": ", value, b"\r\n"]
        return b"".join([*head, b"\r\n"])

    def on_message_begin(self) -> None:
        """Start the clock of a message, whose first byte may be in the input of the last one."""
        super().on_message_begin()
        self._empty_bytes = self._empty_bytes or 1
        if self.since is None:
            self.since = self.loop.time()

    def on_headers_complete(self) -> None:
        """Start the request; its body may follow."""
        self._in_headers = False
        # `_empty_bytes` counts whole pieces; near the limit, the exact size is computed.
        near = self._empty_bytes > HEADERS_LIMIT - _PIECE
        if near and _size(self.url, self.headers) > HEADERS_LIMIT:
            raise _RefusedError(_TOO_LONG)
        self._empty_bytes = 0
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise _RefusedError(_BAD)
            return  # `_feed` handles the upgrade, or feeds the head again
        self._begin()
        # Trailers are not headers: they are parsed into a list that nothing reads.
        self.headers = []

    def _begin(self) -> None:
        """Call the application, after it has answered all earlier requests."""
        scope = self.scope
        version = self.parser.get_http_version()
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["http_version"] = version
        url = self.url
        plain = not url.translate(None, _PLAIN)
        scope["path"], scope["raw_path"], scope["query_string"] = (
            (url.decode("ascii"), url, b"") if plain else _split(url)
        )
        self.cycle = cycle = Cycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        if self._unanswered:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))
        else:
            # Start after the rest of this input has been parsed, which usually is the whole body.
            self._begun = cycle
        self._unanswered.append(cycle)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Run the application at once up to its first wait; a task would begin in the next turn."""
        if sys.version_info >= (3, 12):
            task = asyncio.Task(cycle.run_asgi(app), loop=self.loop, eager_start=True)
            if not task.done():
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
        else:
            super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        """Receive a part of the body."""
        self._empty_bytes = 0
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.body += body
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            cycle.message_event.set()

    def on_message_complete(self) -> None:
        """End the message: the next byte begins another message."""
        if self.parser.should_upgrade():
            return
        self._in_headers = True
        self._empty_bytes = 0
        self.since = None
        if not self.cycle.response_complete:
            self.cycle.more_body = False
            self.cycle.message_event.set()

    def on_response_complete(self) -> None:
        """Continue with the next request, and with input that was held."""
        answered = self._unanswered.popleft()
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            self.flow.resume_reading()
            if self.pipeline:
                self._start_asgi_task(*self.pipeline.pop())
            else:
                self._idle_since = self.loop.time()
        if not answered.more_body and self.since is not None:
            # The next message had begun, and then waited while reading was paused.
            self.since = self.loop.time()
        if self._held:
            self._feed_held()
        elif self._last_word is not None and not self._unanswered:
            self._close_after(self._last_word)

    # What the listener checks

    def check(self, now: float, deadlines: Deadlines) -> None:
        """Close the connection if its client is late, does not read, or has disconnected."""
        if self._outflow.stalled(self.transport, now, deadlines.send_s):
            self._drop()
        elif self._refused_at is not None:
            if now - self._refused_at > _LINGER_S:
                self.transport.abort()
        elif self.flow.read_paused and sockets.hung_up(sockets.of(self.transport)):
            self.transport.close()
        elif self._overdue(now, deadlines):
            # A client that has sent nothing gets no answer.
            self._refuse(_TOO_SLOW if self._in_headers and self._empty_bytes else b"")
        elif self._idle_since is not None and now - self._idle_since > deadlines.idle_s:
            self.transport.close()

    def forgive(self, seconds: float) -> None:
        """Restart the deadlines: this process did not run for a while, so no client was late."""
        self._outflow.since += seconds
        if self.since is not None:
            self.since += seconds
        if self._idle_since is not None:
            self._idle_since += seconds
        if self._refused_at is not None:
            self._refused_at += seconds

    def _overdue(self, now: float, deadlines: Deadlines) -> bool:
        if self.since is None or self._answering():
            return False
        limit_s = deadlines.header_s if self._in_headers else deadlines.message_s
        return now - self.since > limit_s

    def _refuse(self, response: bytes) -> None:
        if self._last_word is not None or self.transport.is_closing():
            return
        self._last_word = response
        self._held.clear()
        if not self._answering():
            self._close_after(response)

    def _close_after(self, response: bytes) -> None:
        self._refused_at = self.loop.time()
        if response and self._may_answer():
            self._tell_of_end()
            self.transport.write(response)
            self.transport.write_eof()
        else:
            # Part of a response may be written, or its client may not read: do not wait.
            self.transport.abort()

    def _may_answer(self) -> bool:
        """Return whether the client would take an answer now for the answer to its message."""
        if not self._unanswered:
            return True
        first = self._unanswered[0]
        return first.more_body and not first.response_started

    def _drop(self) -> None:
        sockets.drop(self.transport)


class AdminConnection(Connection):
    """A connection to the admin listener. Operators get one however many clients are connected."""

    share = 1 / 8


def _size(url: bytes, headers: Iterable[tuple[bytes, bytes]]) -> int:
    return len(url) + sum(len(name) + len(value) + 4 for name, value in headers)


def _split(url: bytes) -> tuple[str, bytes, bytes]:
    """Return decoded path, raw path and query of a request's target."""
    parsed = httptools.parse_url(url)
    raw, query = parsed.path or b"", parsed.query or b""
    path = raw.decode("ascii")
    return unquote(path) if "%" in path else path, raw, query
