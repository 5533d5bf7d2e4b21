"""Output is bounded, keeps both ends, and says how much is missing."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashpool.pool.workers.output_buffer import OutputBuffer

MARK = re.compile(rb"\n\[\.\.\. (\d+) bytes of output cut \.\.\.\]\n")


def test_short_output_is_kept_unchanged():
    buffer = OutputBuffer(100)
    for chunk in (b"one\n", b"two\n"):
        buffer.append(chunk)
    assert buffer.value() == b"one\ntwo\n"


@given(st.lists(st.binary(min_size=1, max_size=40)), st.integers(min_value=2, max_value=60))
def test_the_first_and_the_last_half_survive_whatever_the_chunks(chunks, limit):
    buffer = OutputBuffer(limit)
    for chunk in chunks:
        buffer.append(chunk)
    whole, value, half = b"".join(chunks), buffer.value(), limit // 2
    cut = MARK.search(value, min(half, len(value)))
    if len(whole) <= 2 * half:
        assert value == whole
        return
    assert cut is not None
    head, tail = value[: cut.start()], value[cut.end() :]
    assert head == whole[:half]
    assert tail == whole[-half:]
    assert int(cut[1]) == len(whole) - len(head) - len(tail)


def dumped(*places: str) -> list[bytes]:
    """A stack as the interpreter dumps it, line by line."""
    lines = [f'  File "{place}", line 7 in run\n' for place in places]
    return [line.encode() for line in ("Current thread 0x01 (most recent call first):\n", *lines)]


OURS = [f"/x/pool/_child/{name}.py" for name in ("invoke", "worker", "birth", "zygote", "boot")]


@pytest.mark.parametrize("before", [b"", b"x" * 90, b"x" * 5000, b"x" * 50_000])
@pytest.mark.parametrize("whole", [False, True])
def test_frames_of_flashpool_take_no_room_from_the_users(before, whole):
    buffer = OutputBuffer(200)
    chunks = [before, *dumped("flash:f", *OURS)]
    for chunk in [b"".join(chunks)] if whole else chunks:
        buffer.append(chunk)
    for shown in (buffer.value(ours=False), buffer.tail(150).encode()):
        assert b'File "flash:f", line 7 in run\n' in shown
        assert b"_child" not in shown
        assert b"worker.py" not in shown
    assert b"_child" in buffer.value()


def test_a_gigabyte_costs_no_more_than_the_limit():
    buffer = OutputBuffer(1000)
    for _ in range(1000):
        buffer.append(b"x" * 65536)
    assert len(buffer.value()) < 1100
    assert sum(map(len, buffer._tail)) < 3 * 65536
