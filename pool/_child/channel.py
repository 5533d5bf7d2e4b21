"""A worker's end of its channel, which the zygote creates before the fork, as that is cheaper."""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_STREAM, socket

# Bound here, because user code may have replaced them in `socket` when a result is sent.
from builtins import BaseException, OSError, len, memoryview

from . import framing, wire

#: Only a formal limit: front-ends refuse much smaller requests.
_BODY_LIMIT = 1 << 40


class Channel:
    """The worker's end of its channel; blocking."""

    __slots__ = ("fd", "frames", "reader", "sock")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.sock = socket(AF_UNIX, SOCK_STREAM, 0, fd)
        self.reader: framing.FrameReader | None = None
        self.frames: list[wire.Frame] = []

    def receive(self) -> wire.Frame:
        """Return the next frame.

        Raises:
            Closed: the supervisor is gone, or no longer needs this worker.
        """
        while not self.frames:
            data, fds = framing.receive(self.sock)
            if not data:
                raise wire.Closed
            if self.reader is None:
                frame = framing.whole(data, fds)
                if frame is not None:
                    return frame
                self.reader = framing.FrameReader(_BODY_LIMIT)
            self.frames += self.reader.feed(data, fds)
        return self.frames.pop(0)

    def send(self, kind: int, meta: bytes, body: bytes, fds: list[int]) -> None:
        """Send a whole frame, and close the descriptors that were sent with it."""
        head = wire.head(kind, meta, len(body), len(fds))
        try:
            sent = self.sock.sendmsg([head, body], framing.rights(fds) if fds else ())
        except OSError:
            raise
        except BaseException:
            # An audit hook of user code forbids `sendmsg`. `sendall` raises no audit event.
            if fds:
                raise
            sent = 0
        for fd in fds:
            os.close(fd)
        if sent < len(head):
            self.sock.sendall(head[sent:])
            sent = len(head)
        if sent - len(head) < len(body):
            self.sock.sendall(memoryview(body)[sent - len(head) :])
