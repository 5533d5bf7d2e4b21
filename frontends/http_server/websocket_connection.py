"""One WebSocket of a client: uvicorn's protocol with a further deadline and refusals.

uvicorn pings its clients and closes the WebSocket of a client that does not answer. But data that
it has already written waits forever for a client that does not read, and so does a connection whose
head is invalid.
"""

from __future__ import annotations

from typing import Any, Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from . import sockets
from .connection import Deadlines

_BAD: Final = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class WebSocketConnection(WebSocketsSansIOProtocol):
    """A connection that has become a WebSocket."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._outflow = sockets.Outflow()

    def data_received(self, data: bytes) -> None:
        """Parse input, and refuse anything that is not a handshake."""
        super().data_received(data)
        if not self.handshake_initiated and self.conn.handshake_exc is not None:
            self.transport.write(_BAD)
            self.transport.close()

    def check(self, now: float, deadlines: Deadlines) -> None:
        """Reset the connection if its client has not read for too long."""
        if self._outflow.stalled(self.transport, now, deadlines.send_s):
            sockets.drop(self.transport)

    def forgive(self, seconds: float) -> None:
        """Restart the deadlines: this process did not run for a while, so no client was late."""
        self._outflow.since += seconds
