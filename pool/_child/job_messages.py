"""A job of a deployed app as a request to its worker: the format of requests and answers.

    supervisor -> worker   a request with the method `job`; the path is the job's id, the headers
                           are the options below, and the body is the job, as JSON
    worker -> supervisor   an answer whose body is records: a kind, a length, so many bytes of JSON

        ITEM     one item of a generator
        RESULT   the handler's result; the last record
        FAILED   why the job has no result, as an object; the last record

Bodies are cut into pieces, and have credit, as in all requests (`app_messages`).
"""

from __future__ import annotations

import struct

from . import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: The method of a request that carries a job.
JOB = "job"

# Names of options. Most bytes of an item, and of a result.
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

#: Most bytes of a FAILED record, whose texts are cut when it is created.
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
        """Return the number of bytes held of an incomplete record."""
        return self._size

    def feed(self, piece: bytes) -> Iterator[tuple[int, bytes]]:
        """Add a piece; yield ``kind, body`` of each record that it completes.

        Raises:
            BadFrame: the bytes are not records.
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
