"""Requests of apps and their answers, as bytes in frames: see `wire` for the kinds of frames.

    number | flags, slot | connection, method, version, path, raw path, query, name, value, ...
    number | status, flags | name, value, name, value, ...
    number | subprotocol, name, value, name, value, ...      a WebSocket is accepted
    number | code, reason                                    a WebSocket is closed

Texts and headers are `fields`: their number, their lengths, then their bytes. The connection
(scheme, root path, client, server) is the same for each request of a client, so it is JSON that
both ends cache.

The *ledger*, memory that both ends share, records whether a request has begun: before the worker
enters the application, it writes the request's number to the request's slot. A message instead
would cost each request two system calls, and could be lost with a worker that dies.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from json import dumps, loads

from . import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Headers = list[tuple[bytes, bytes]]
    #: Scheme, root path, client, server.
    Connection = tuple[str, str, tuple[str, int] | None, tuple[str, int | None] | None]

#: Bytes of a body that either side may send ahead of the other's credit.
WINDOW = 256 * 1024
#: Most bytes of a body in one frame.
PIECE = 64 * 1024

#: Flags: more of the body follows; the body is sent on demand (the client waits for
#: ``100 Continue``).
MORE = 1
ASKED_FOR = 2
#: Flag of a request: it is for a WebSocket; of a message: it is text.
SOCKET = 4
TEXT = 8

# How the task of a request ended.
#: The request was answered, or its client had disconnected.
FINE = 0
#: The application raised, or returned, without an answer.
UNANSWERED = 1
#: The task ended in the middle of an answer.
CUT = 2
#: The task was cancelled before the answer.
CANCELLED = 3

#: Weight of a piece of a message, beside its bytes: bounds the number of empty pieces in a window.
_OF_A_PIECE = 64

#: An entry of the ledger.
ENTRY = struct.Struct("<Q")

_COUNT = struct.Struct("<I")
_REQUEST = struct.Struct("<QBI")
_RESPONSE = struct.Struct("<QHB")
_FLAGS = struct.Struct("<QB")
_CREDIT = struct.Struct("<QI")
_CLOSING = struct.Struct("<QH")
#: Most fields of a message: more than any server accepts as headers.
_MOST = 4096


def pack_fields(fields: Sequence[bytes]) -> bytes:
    """Pack any number of byte strings."""
    number = len(fields)
    return struct.pack(f"<{number + 1}I", number, *map(len, fields)) + b"".join(fields)


def unpack_fields(data: bytes, at: int) -> list[bytes]:
    """Return the fields that `pack_fields` packed, up to the end of the data.

    Raises:
        BadFrame: the data is malformed.
    """
    try:
        (number,) = _COUNT.unpack_from(data, at)
        if number > _MOST:
            raise wire.BadFrame(f"an app message with {number} fields")
        lengths = struct.unpack_from(f"<{number}I", data, at + _COUNT.size)
    except struct.error as error:
        raise wire.BadFrame(f"malformed app message: {error}") from None
    fields = []
    begin = at + _COUNT.size * (number + 1)
    for length in lengths:
        end = begin + length
        fields.append(data[begin:end])
        begin = end
    if begin != len(data):
        raise wire.BadFrame("malformed app message: its lengths do not add up")
    return fields


# -- To the worker -------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def pack_connection(connection: Connection) -> bytes:
    """Pack the data that all requests of a connection share."""
    return dumps(connection).encode()


@lru_cache(maxsize=1024)
def unpack_connection(data: bytes) -> Connection:
    """Return the data that `pack_connection` packed."""
    scheme, root_path, client, server = loads(data)
    return scheme, root_path, _address(client), _address(server)


def _address(found: list[object] | None) -> tuple[str, int] | None:
    return None if found is None else (str(found[0]), found[1])  # type: ignore[return-value]


def pack_request(number: int, flags: int, slot: int, fields: Sequence[bytes]) -> bytes:
    """Pack the meta of a REQUEST; ``fields`` are from `request_fields`."""
    return _REQUEST.pack(number, flags, slot) + pack_fields(fields)


def request_fields(
    connection: Connection,
    method: str,
    http_version: str,
    path: str,
    raw_path: bytes,
    query: bytes,
    headers: Iterable[tuple[bytes, bytes]],
) -> list[bytes]:
    """Return a request's head as fields."""
    fields = [
        pack_connection(connection),
        method.encode(),
        http_version.encode(),
        path.encode("utf-8", "surrogatepass"),
        raw_path,
        query,
    ]
    for name, value in headers:
        fields += (name, value)
    return fields


def unpack_request(meta: bytes) -> tuple[int, int, int, list[bytes]]:
    """Return ``number, flags, slot, fields`` of a REQUEST."""
    number, flags, slot = _REQUEST.unpack_from(meta)
    return number, flags, slot, unpack_fields(meta, _REQUEST.size)


def paired(fields: list[bytes], begin: int = 0) -> Headers:
    """Return the fields from ``begin`` on as headers: pairs of name and value."""
    return list(zip(fields[begin::2], fields[begin + 1 :: 2], strict=True))


# -- In both directions --------------------------------------------------------------------


def pack_flags(number: int, flags: int) -> bytes:
    """Pack the meta of BODY, PIECE and MESSAGE (more follows), or of REQUEST_OVER (how)."""
    return _FLAGS.pack(number, flags)


def unpack_flags(meta: bytes) -> tuple[int, int]:
    """Return ``number, flags`` that `pack_flags` packed.

    Raises:
        BadFrame: the meta is malformed.
    """
    if len(meta) != _FLAGS.size:
        raise wire.BadFrame("malformed app message: its flags are missing")
    number, flags = _FLAGS.unpack(meta)
    return number, flags


def pack_credit(number: int, size: int) -> bytes:
    """Pack the meta of a CREDIT for ``size`` bytes."""
    return _CREDIT.pack(number, size)


def unpack_credit(meta: bytes) -> tuple[int, int]:
    """Return ``number, size`` of a CREDIT.

    Raises:
        BadFrame: the meta is malformed.
    """
    if len(meta) != _CREDIT.size:
        raise wire.BadFrame("malformed app message: its credit is missing")
    number, size = _CREDIT.unpack(meta)
    return number, size


def weight(piece: bytes) -> int:
    """Return the share of a window that a piece of a WebSocket's message takes."""
    return len(piece) + _OF_A_PIECE


def pack_closing(number: int, code: int, reason: str) -> bytes:
    """Pack the meta of a CLOSING."""
    return _CLOSING.pack(number, code) + reason.encode("utf-8", "replace")


def unpack_closing(meta: bytes) -> tuple[int, int, str]:
    """Return ``number, code, reason`` of a CLOSING.

    Raises:
        BadFrame: the meta is malformed.
    """
    if len(meta) < _CLOSING.size:
        raise wire.BadFrame("malformed app message: its code is missing")
    number, code = _CLOSING.unpack_from(meta)
    return number, code, meta[_CLOSING.size :].decode("utf-8", "replace")


# -- From the worker -----------------------------------------------------------------------


def pack_response(number: int, status: int, flags: int, fields: Sequence[bytes]) -> bytes:
    """Pack the meta of a RESPONSE; its fields are the names and values of headers."""
    return _RESPONSE.pack(number, status, flags) + pack_fields(fields)


def unpack_response(meta: bytes) -> tuple[int, int, int, Headers]:
    """Return ``number, status, flags, headers`` of a RESPONSE.

    Raises:
        BadFrame: the meta is malformed.
    """
    if len(meta) < _RESPONSE.size:
        raise wire.BadFrame("malformed app message: its status is missing")
    number, status, flags = _RESPONSE.unpack_from(meta)
    fields = unpack_fields(meta, _RESPONSE.size)
    if len(fields) % 2 or not 100 <= status <= 599:
        raise wire.BadFrame("malformed app message: it does not begin an answer")
    return number, status, flags, paired(fields)


def pack_accepted(number: int, subprotocol: str, fields: Sequence[bytes]) -> bytes:
    """Pack the meta of an ACCEPTED; ``fields`` are names and values of headers."""
    return wire.NUMBER.pack(number) + pack_fields([subprotocol.encode(), *fields])


def unpack_accepted(meta: bytes) -> tuple[int, str, Headers]:
    """Return ``number, subprotocol, headers`` of an ACCEPTED.

    Raises:
        BadFrame: the meta is malformed.
    """
    number, _ = wire.split_number(meta)
    fields = unpack_fields(meta, wire.NUMBER.size)
    if len(fields) % 2 != 1:
        raise wire.BadFrame("malformed app message: a header has no value")
    return number, fields[0].decode("utf-8", "replace"), paired(fields, 1)
