"""Writes frames and packets to a socket, and reads them; `wire` defines their meaning.

    head + body -- sendmsg, with `rights` --> stream --> receive --> whole      (nearly always)
                                                                 '-> FrameReader  (cut anyhow)
    send_packet ---------------------------> packet  --> receive_packet, receive_packets

Nothing here trusts the other end of a channel: user code may have written to it.
"""

from __future__ import annotations

import struct

# The C module: socket's own constants are enums and its class is a wrapper, which a worker
# would pay for.
from _socket import (
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    SCM_RIGHTS,
    SOL_SOCKET,
    socket,
)

# Bound here, because preloaded modules and user code may replace them in `json`.
from json import dumps, loads

from .wire import HEADER, MAGIC, MAX_FDS, META_LIMIT, PACKET_LIMIT, BadFrame, Closed, Exited, Frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .wire import Meta

_ANCILLARY = CMSG_SPACE(MAX_FDS * 4)
#: Below what malloc would map, and give back, for every read.
_CHUNK = 64 * 1024


def whole(data: bytes, fds: list[int]) -> Frame | None:
    """Return the frame if ``data`` is exactly one frame, which is the usual case."""
    if len(data) < HEADER.size:
        return None
    magic, kind, n_fds, meta_length, body_length = HEADER.unpack_from(data)
    body_at = HEADER.size + meta_length
    if magic != MAGIC or n_fds != len(fds) or len(data) != body_at + body_length:
        return None
    return Frame(kind, data[HEADER.size : body_at], data[body_at:], fds)


class FrameReader:
    """Turns what arrives on a channel, however it is cut, into frames.

    Memory is bounded by the frame being read: its lengths are checked against the
    limits before anything is kept, and so is the number of descriptors that came along.
    """

    def __init__(self, body_limit: int) -> None:
        #: Larger bodies are refused.
        self.body_limit = body_limit
        #: Descriptors of an incomplete frame; the reader closes them if it stops reading.
        self.fds: list[int] = []
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = HEADER.size

    def feed(self, data: bytes, fds: list[int]) -> list[Frame]:
        """Take bytes and descriptors in; the frames they complete.

        Raises:
            BadFrame: the bytes are not a frame, or it is larger than allowed.
        """
        if not self._have:
            frame = whole(data, fds)
            if frame is not None:
                return [frame]
        self.fds += fds
        # Those of the current frame, and of a frame that these bytes may begin.
        if len(self.fds) > 2 * MAX_FDS:
            raise BadFrame(f"{len(self.fds)} descriptors arrived that belong to no frame")
        self._chunks.append(data)
        self._have += len(data)
        if self._have < self._need:
            return []
        # Let go of the pieces: a large body is held in three forms otherwise.
        data, self._chunks = b"".join(self._chunks), []
        return self._frames(data)

    def _frames(self, data: bytes) -> list[Frame]:
        """Yield complete frames, and keep the rest of the data."""
        frames: list[Frame] = []
        at = 0
        self._need = HEADER.size
        while len(data) - at >= HEADER.size:
            magic, kind, n_fds, meta_length, body_length = HEADER.unpack_from(data, at)
            if magic != MAGIC or meta_length > META_LIMIT or body_length > self.body_limit:
                if frames:
                    break  # they count; the next bytes, or their end, come back to this
                raise BadFrame(f"not a frame: it begins with {data[at : at + 16]!r}")
            body_at = at + HEADER.size + meta_length
            end = body_at + body_length
            if len(data) < end:
                self._need = end - at
                break
            fds, self.fds = self.fds[:n_fds], self.fds[n_fds:]
            frames.append(Frame(kind, data[at + HEADER.size : body_at], data[body_at:end], fds))
            at = end
        rest = data[at:]
        self._chunks = [rest] if rest else []
        self._have = len(rest)
        return frames


def receive(sock: socket) -> tuple[bytes, list[int]]:
    """Whatever is there (``b""`` at the end), with the descriptors that rode along."""
    data, ancillary, _, _ = sock.recvmsg(_CHUNK, _ANCILLARY, MSG_CMSG_CLOEXEC)
    return data, _fds_in(ancillary) if ancillary else []


def _fds_in(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds: list[int] = []
    for level, kind, data in ancillary:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            number = len(data) // 4
            fds += struct.unpack(f"{number}i", data[: 4 * number])
    return fds


def rights(fds: list[int]) -> list[tuple[int, int, bytes]]:
    """The ancillary part of ``sendmsg`` that carries descriptors."""
    if not fds:
        return []
    return [(SOL_SOCKET, SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))]


def send_packet(sock: socket, message: Meta, fds: list[int] | None = None) -> None:
    """Send one control message."""
    data = dumps(message, separators=(",", ":")).encode()
    sock.sendmsg([data], rights(fds) if fds else [])


def receive_packet(sock: socket) -> tuple[Meta | Exited, list[int]]:
    """Receive one control message.

    Raises:
        Closed: the other end is gone.
    """
    data, ancillary, _, _ = sock.recvmsg(PACKET_LIMIT, _ANCILLARY, MSG_CMSG_CLOEXEC)
    if not data:
        raise Closed
    return _message(data), _fds_in(ancillary) if ancillary else []


def receive_packets(sock: socket) -> tuple[list[tuple[Meta | Exited, list[int]]], bool]:
    """The control messages that have arrived; and whether more may come."""
    found: list[tuple[Meta | Exited, list[int]]] = []
    while True:
        try:
            data, ancillary, _, _ = sock.recvmsg(PACKET_LIMIT, _ANCILLARY, MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return found, True
        except OSError:
            return found, False
        if not data:
            return found, False
        found.append((_message(data), _fds_in(ancillary) if ancillary else []))


def _message(data: bytes) -> Meta | Exited:
    # Text, so that `loads` does not guess the encoding first.
    found: Meta | Exited = Exited.unpack(data) or loads(data.decode())
    return found
