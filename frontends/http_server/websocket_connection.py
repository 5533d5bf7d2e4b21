"""One WebSocket of a client: uvicorn's protocol, with the deadline and the refusal it lacks.

uvicorn pings its clients and closes the WebSocket of one that does not answer. What it has written by
then waits for ever for a client that does not read, and so does a connection whose head is none.
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
        """Have it parsed; what is no handshake is refused."""
        super().data_received(data)
        if not self.handshake_initiated and self.conn.handshake_exc is not None:
            self.transport.write(_BAD)
            self.transport.close()

    def check(self, now: float, deadlines: Deadlines) -> None:
        """Drop it if its client has not read for too long."""
        if self._outflow.stalled(self.transport, now, deadlines.send_s):
            sockets.drop(self.transport)

    def forgive(self, seconds: float) -> None:
        """This process did not run for so long: nobody was late meanwhile."""
        self._outflow.since += seconds
