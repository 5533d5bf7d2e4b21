"""A job of a deployed app as a request to its worker: the format of requests and answers.

    supervisor -> worker   a request of the method `job`; its path is the job's id, its headers are the
                           options below, and its body is the job, as JSON
    worker -> supervisor   an answer whose body is records: a kind, a length, so many bytes of JSON

        ITEM     one item of a generator
        RESULT   what the handler returned; the last record
        FAILED   why there is no result, as an object; the last record

The cutting of bodies and the credit for them are those of all requests (`app_messages`).
"""

from __future__ import annotations

import struct

from . import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: The method of a request that is a job.
JOB = "job"

# Names of options. Bytes that an item, and a result, may have.
ITEM_LIMIT = b"item-limit"
RESULT_LIMIT = b"result-limit"
#: Whether items are sent one by one, and whether the result is a list of them.
STREAM = b"stream"
LIST = b"list"
YES = b"1"
NO = b"0"

# Kinds of records.
ITEM = 1
RESULT = 2
FAILED = 3

#: Bytes of a FAILED record, at most: its texts are bounded where it is made.
FAILURE_LIMIT = 4 * 1024 * 1024

_HEAD = struct.Struct("<BQ")
HEAD_SIZE = _HEAD.size


def pack(kind: int, body: bytes) -> bytes:
    """Pack one record."""
    return _HEAD.pack(kind, len(body)) + body


class RecordReader:
    """Cuts records from the pieces of an answer."""

    def __init__(self, item_limit: int, result_limit: int) -> None:
        self._limits = {ITEM: item_limit, RESULT: result_limit, FAILED: FAILURE_LIMIT}
        self._pieces: list[bytes] = []
        self._size = 0
        self._needed = HEAD_SIZE

    @property
    def held(self) -> int:
        """Bytes of a record that is not complete."""
        return self._size

    def feed(self, piece: bytes) -> Iterator[tuple[int, bytes]]:
        """``kind, body`` of the records that are complete with this piece.

        Raises:
            BadFrame: these are no records.
        """
        self._pieces.append(piece)
        self._size += len(piece)
        while self._size >= self._needed:
            data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            kind, length = _HEAD.unpack_from(data)
            if length > self._limits.get(kind, -1):
                raise wire.BadFrame(f"not a record of a job: kind {kind}, {length} bytes")
            self._needed = HEAD_SIZE + length
            self._pieces = [data]
            if len(data) < self._needed:
                return
            end = self._needed
            self._pieces = [data[end:]]
            self._size = len(data) - end
            self._needed = HEAD_SIZE
            yield kind, data[HEAD_SIZE:end]
