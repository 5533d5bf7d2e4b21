"""What the kernel knows of a connection, and how many of them a server may have."""

from __future__ import annotations

import array
import fcntl
import resource
import select
import socket
import termios


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
