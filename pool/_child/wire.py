"""Every message that crosses a process boundary, and nothing else.

Two kinds of socket, both Unix, both made before the receiving process exists:

*Control* (supervisor <-> zygote, ``SOCK_SEQPACKET``): one JSON object a packet, its
``op`` one of the names below.

    supervisor -> zygote                       zygote -> supervisor
      START  how to prepare, see `zygote`        LOADING  module          (being imported)
      FORK   n                                   SKIPPED  module, why     (not preloaded)
      STOP   worker, grace, dump                 READY    pid, modules, python
      LEAVE                                      UNSAFE   module, why     (must not fork)
                                                 SPARES   workers, ready  + 2 descriptors each
                                                 NOT_FORKED  n, why
                                                 EXITED   worker, status, began, orphans
                                                 GONE     worker          (its tree, too)

*Channel* (supervisor <-> worker, ``SOCK_STREAM``): frames. A frame is `HEADER`, then a
JSON object (``meta``), then opaque bytes (``body``); descriptors ride on its first byte.

    CALL    supervisor -> worker   codec, env, stream, result_limit | the request's bytes
    CREDIT  supervisor -> worker   items: how many more may be yielded
    READY   worker -> supervisor   a spare that prepared itself can take its call
    ITEM    worker -> supervisor   one item
    RESULT  worker -> supervisor   ok and timings, or the failure's record | result or pickle

Only what JSON can say crosses, and bytes nobody but user code interprets: the two ends
may run different Pythons.
"""

from __future__ import annotations

import array
import json
import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Meta = dict[str, Any]

# Operations on the control socket.
START = "start"
FORK = "fork"
STOP = "stop"
LEAVE = "leave"
LOADING = "loading"
SKIPPED = "skipped"
READY = "ready"
UNSAFE = "unsafe"
SPARES = "spares"
NOT_FORKED = "not_forked"
EXITED = "exited"
GONE = "gone"

# Kinds of frame on a channel.
CALL = 1
CREDIT = 2
WORKER_READY = 16
ITEM = 18
RESULT = 19

#: magic, kind, number of descriptors, length of meta, length of body.
HEADER = struct.Struct("<2sBBIQ")
MAGIC = b"fp"
#: No meta is larger: it holds names and numbers, and error texts of bounded length.
META_LIMIT = 16 * 1024 * 1024
#: Descriptors that can ride on one frame.
MAX_FDS = 16
#: Largest control packet; a socket buffer takes it whole.
PACKET_LIMIT = 128 * 1024
#: Items of a stream a worker sends before it waits for credit.
WINDOW = 16

_ANCILLARY = socket.CMSG_SPACE(MAX_FDS * 4)
_CHUNK = 256 * 1024


class BadRequest(Exception):
    """The request or its arguments cannot be understood (``InvalidRequest`` outside)."""


class BadFrame(Exception):
    """What came over a channel is not a frame: somebody else wrote to its descriptor."""


class Closed(Exception):
    """The other end is gone."""


class Frame:
    """One frame, complete."""

    __slots__ = ("body", "fds", "kind", "meta")

    def __init__(self, kind: int, meta: Meta, body: bytes, fds: list[int]) -> None:
        self.kind = kind
        self.meta = meta
        self.body = body
        self.fds = fds


def head(kind: int, meta: Meta, body_length: int, fds: int) -> bytes:
    """Header and meta of a frame; the body follows them on the wire."""
    text = json.dumps(meta, separators=(",", ":")).encode()
    return HEADER.pack(MAGIC, kind, fds, len(text), body_length) + text


class FrameReader:
    """Turns what arrives on a channel, however it is cut, into frames.

    Memory is bounded by the frame being read: its lengths are checked against the
    limits before anything is kept.
    """

    def __init__(self, body_limit: int) -> None:
        self._body_limit = body_limit
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = HEADER.size
        self._fds: list[int] = []

    def feed(self, data: bytes, fds: list[int]) -> Iterator[Frame]:
        """Take bytes and descriptors in; yield each frame they complete.

        Raises:
            BadFrame: the bytes are not a frame, or it is larger than allowed.
        """
        self._fds += fds
        self._chunks.append(data)
        self._have += len(data)
        while self._have >= self._need:
            data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
            self._chunks = [data]
            magic, kind, n_fds, meta_length, body_length = HEADER.unpack_from(data)
            if magic != MAGIC or meta_length > META_LIMIT or body_length > self._body_limit:
                raise BadFrame(f"not a frame: it begins with {data[:16]!r}")
            end = HEADER.size + meta_length + body_length
            if self._have < end:
                self._need = end
                return
            yield self._frame(data, kind, n_fds, meta_length, end)

    def _frame(self, data: bytes, kind: int, n_fds: int, meta_length: int, end: int) -> Frame:
        body_at = HEADER.size + meta_length
        try:
            meta = json.loads(data[HEADER.size : body_at])
        except ValueError as error:
            raise BadFrame(f"the meta of a frame is not JSON: {error}") from None
        body = data[body_at:end]
        rest = data[end:]
        fds, self._fds = self._fds[:n_fds], self._fds[n_fds:]
        self._chunks = [rest] if rest else []
        self._have = len(rest)
        self._need = HEADER.size
        return Frame(kind, meta, body, fds)

    def abandoned_fds(self) -> list[int]:
        """Descriptors of a frame that never became complete; the caller closes them."""
        fds, self._fds = self._fds, []
        return fds


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Whatever is there (``b""`` at the end), with the descriptors that rode along."""
    data, ancillary, _, _ = sock.recvmsg(_CHUNK, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
    return data, _fds_in(ancillary) if ancillary else []


def _fds_in(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def rights(fds: list[int]) -> list[tuple[int, int, array.array[int]]]:
    """The ancillary part of ``sendmsg`` that carries descriptors."""
    if not fds:
        return []
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]


def send_packet(sock: socket.socket, message: Meta, fds: list[int] | None = None) -> None:
    """Send one control message."""
    data = json.dumps(message, separators=(",", ":")).encode()
    sock.sendmsg([data], rights(fds) if fds else [])


def receive_packet(sock: socket.socket) -> tuple[Meta, list[int]]:
    """Receive one control message.

    Raises:
        Closed: the other end is gone.
    """
    data, ancillary, _, _ = sock.recvmsg(PACKET_LIMIT, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
    if not data:
        raise Closed
    message: Meta = json.loads(data)
    return message, _fds_in(ancillary) if ancillary else []
