"""Records of jobs, reassembled from pieces of any size."""

import pytest

from flashpool.pool._child import job_messages, wire


@pytest.mark.parametrize("size", [1, 3, 9, 10, 11, 1000])
def test_records_are_reassembled_from_pieces_of_any_size(size: int) -> None:
    wanted = [(job_messages.ITEM, b"1"), (job_messages.ITEM, b""), (job_messages.RESULT, b"x" * 50)]
    data = b"".join(job_messages.pack(kind, body) for kind, body in wanted)
    reader = job_messages.RecordReader(10, 50)
    found = [
        record for at in range(0, len(data), size) for record in reader.feed(data[at : at + size])
    ]
    assert found == wanted
    assert reader.held == 0


@pytest.mark.parametrize(
    ("kind", "body"), [(job_messages.ITEM, b"x" * 11), (job_messages.RESULT, b"x" * 51), (9, b"")]
)
def test_oversized_and_unknown_records_are_refused_by_their_head(kind: int, body: bytes) -> None:
    reader = job_messages.RecordReader(10, 50)
    with pytest.raises(wire.BadFrame, match="not a record"):
        list(reader.feed(job_messages.pack(kind, body)[: job_messages.HEAD_SIZE]))
