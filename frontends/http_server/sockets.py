"""What the kernel knows of a connection, and how many of them a server may have."""

from __future__ import annotations

import array
import asyncio
import fcntl
import resource
import select
import socket
import struct
import termios
from typing import Final

#: Closing then drops what the kernel still holds, and resets the connection.
_DROP: Final = struct.pack("ii", 1, 0)


def of(transport: asyncio.BaseTransport) -> socket.socket:
    """Its socket, open for as long as `connection_lost` was not called."""
    sock: socket.socket = transport.get_extra_info("socket")
    return sock


class Outflow:
    """How long a client has taken nothing of what it was sent."""

    __slots__ = ("since", "untaken")

    def __init__(self) -> None:
        #: Bytes that it has not taken, and since when there have been that many.
        self.untaken = 0
        self.since = 0.0

    def stalled(self, transport: asyncio.WriteTransport, now: float, limit_s: float) -> bool:
        """Whether that is longer than so many seconds."""
        untaken = transport.get_write_buffer_size() + unacknowledged(of(transport))
        if untaken != self.untaken:
            # More of it was written, or some of it was taken: writing stops at a mark.
            self.untaken, self.since = untaken, now
        return untaken > 0 and now - self.since > limit_s


def drop(transport: asyncio.WriteTransport) -> None:
    """Reset a connection: nothing that it was sent is waited for."""
    of(transport).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DROP)
    transport.abort()


def unacknowledged(sock: socket.socket) -> int:
    """Bytes that the kernel has of us and the client has not; TIOCOUTQ is SIOCOUTQ."""
    size = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, size)
    return size[0]


def hung_up(sock: socket.socket) -> bool:
    """Whether the other end has closed, even if there is something left to read."""
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


def connection_limit() -> int:
    """Half of the descriptors; the pool needs the others."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else max(64, soft // 2)
