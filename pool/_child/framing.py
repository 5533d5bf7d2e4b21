"""Writes frames and packets to a socket, and reads them; `wire` defines their meaning.

    head + body -- sendmsg, with `rights` --> stream --> receive --> whole  (nearly always)
                                                                 '-> FrameReader  (any chunks)
    send_packet ---------------------------> packet  --> receive_packet, receive_packets

No function here trusts the other end of a channel: user code may have written to the channel.
"""

from __future__ import annotations

import struct

# The C module: the constants of `socket` are enums and its class is a wrapper, which would cost
# each worker time.
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
#: Bytes per read: small enough that malloc does not map and unmap memory for each.
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
    """Turns the bytes that arrive on a channel, in any chunks, into frames.

    Memory is bounded by the frame being read: its lengths are checked against the limits before its
    body is kept, and so is the number of descriptors that arrived.
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
        """Add bytes and descriptors; return the frames that they complete.

        Raises:
            BadFrame: the bytes are not a frame, or the frame is larger than allowed.
        """
        if not self._have:
            frame = whole(data, fds)
            if frame is not None:
                return [frame]
        self.fds += fds
        # Descriptors of the current frame, and of a frame that these bytes may begin.
        if len(self.fds) > 2 * MAX_FDS:
            raise BadFrame(f"{len(self.fds)} descriptors arrived that belong to no frame")
        self._chunks.append(data)
        self._have += len(data)
        if self._have < self._need:
            return []
        # Release the pieces, or a large body would be in memory three times.
        data, self._chunks = b"".join(self._chunks), []
        return self._frames(data)

    def _frames(self, data: bytes) -> list[Frame]:
        """Return the complete frames, and keep the rest of the data."""
        frames: list[Frame] = []
        at = 0
        self._need = HEADER.size
        while len(data) - at >= HEADER.size:
            magic, kind, n_fds, meta_length, body_length = HEADER.unpack_from(data, at)
            if magic != MAGIC or meta_length > META_LIMIT or body_length > self.body_limit:
                if frames:
                    break  # return valid frames first; the next call raises
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
    """Return the bytes that have arrived (``b""`` at the end), with their descriptors."""
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
    """Return the ancillary data with which ``sendmsg`` sends descriptors."""
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
    """Return the control messages that have arrived, and whether more may come."""
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
    # Decoded here, so that `loads` does not first detect the encoding.
    found: Meta | Exited = Exited.unpack(data) or loads(data.decode())
    return found
