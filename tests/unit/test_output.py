"""Output is bounded, keeps both ends, and says how much is missing."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from flashpool.pool.output import OutputBuffer

MARK = re.compile(rb"\n\[\.\.\. (\d+) bytes of output cut \.\.\.\]\n")


def test_little_output_is_kept_as_it_is():
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


def test_a_gigabyte_costs_no_more_than_the_limit():
    buffer = OutputBuffer(1000)
    for _ in range(1000):
        buffer.append(b"x" * 65536)
    assert len(buffer.value()) < 1100
    assert sum(map(len, buffer._tail)) < 3 * 65536
