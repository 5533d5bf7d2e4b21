"""Kernel facts about a connection, and how many connections a server may have."""

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

#: SO_LINGER of 0 s: closing drops data that the kernel still holds, and resets the connection.
_DROP: Final = struct.pack("ii", 1, 0)


def of(transport: asyncio.BaseTransport) -> socket.socket:
    """Return the transport's socket, which is open until `connection_lost`."""
    sock: socket.socket = transport.get_extra_info("socket")
    return sock


class Outflow:
    """Measures how long a client has not read what was sent to it."""

    __slots__ = ("since", "untaken")

    def __init__(self) -> None:
        #: Unread bytes, and since when their number has not changed.
        self.untaken = 0
        self.since = 0.0

    def stalled(self, transport: asyncio.WriteTransport, now: float, limit_s: float) -> bool:
        """Return whether the client has read nothing for ``limit_s``."""
        untaken = transport.get_write_buffer_size() + unacknowledged(of(transport))
        if untaken != self.untaken:
            # More was written, or the client read something: writing pauses at a high-water mark.
            self.untaken, self.since = untaken, now
        return untaken > 0 and now - self.since > limit_s


def drop(transport: asyncio.WriteTransport) -> None:
    """Reset a connection, and drop data that was not sent yet."""
    of(transport).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DROP)
    transport.abort()


def unacknowledged(sock: socket.socket) -> int:
    """Return the bytes written that the client has not acknowledged; TIOCOUTQ is SIOCOUTQ."""
    size = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, size)
    return size[0]


def hung_up(sock: socket.socket) -> bool:
    """Return whether the other end has closed, even if unread data remain."""
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


def connection_limit() -> int:
    """Return half of the descriptors; the pool needs the other half."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else max(64, soft // 2)
