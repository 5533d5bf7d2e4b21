"""Printing to a pipe that nobody reads."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator

import pytest

from flashpool.frontends.logs.writer import LineWriter, WriterStream

SIZE = 4096


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, SIZE)
    yield reader, writer
    os.close(writer)
    os.close(reader)


def read_until(reader: int, last: bytes) -> bytes:
    found = b""
    while last not in found:
        found += os.read(reader, 65536)
    return found


def test_lines_arrive_complete_and_in_order(pipe: tuple[int, int]) -> None:
    reader, fd = pipe
    stream = WriterStream(LineWriter(fd), fd)
    for number in range(1000):
        print(f"line {number}", file=stream)
    lines = read_until(reader, b"line 999\n").decode().splitlines()
    assert lines == [f"line {number}" for number in range(1000)]


def test_unread_lines_are_dropped_and_counted(pipe: tuple[int, int]) -> None:
    reader, fd = pipe
    writer = LineWriter(fd, limit=1000)
    filler = b"x" * 99 + b"\n"
    for _ in range(100):
        writer.put(filler)
    began = time.monotonic()
    writer.close(began + 0.05)
    kept, lost = b"", 0
    while kept.count(filler) + lost < 100:
        kept += os.read(reader, 65536)
        lost = sum(map(int, re.findall(rb"no process read it: (\d+)\n", kept)))
    assert kept.count(filler) + lost == 100
    assert lost > 0
    writer.put(b"next\n")
    assert b"next" in read_until(reader, b"next")


def test_the_wait_for_unread_lines_at_exit_is_bounded(pipe: tuple[int, int]) -> None:
    reader, fd = pipe
    writer = LineWriter(fd)
    end = time.monotonic() + 0.5
    writer.wait_from_now_on(end)
    writer.put(b"last words\n")
    os.set_blocking(reader, False)
    assert os.read(reader, 100) == b"last words\n"
    for _ in range(3):
        writer.put(b"x" * 100_000 + b"\n")
    assert time.monotonic() >= end


def test_a_closed_reader_does_not_block_writers() -> None:
    reader, fd = os.pipe()
    os.close(reader)
    writer = LineWriter(fd)
    for _ in range(10):
        writer.put(b"line\n")
    writer.close(time.monotonic() + 30)
    os.close(fd)


def test_a_forked_child_writes_from_its_own_thread(pipe: tuple[int, int]) -> None:
    reader, fd = pipe
    writer = LineWriter(fd)
    writer.put(b"parent\n")
    read_until(reader, b"parent")
    child = os.fork()
    if child == 0:
        writer.put(b"child's\n")
        writer.close(time.monotonic() + 30)
        os._exit(0)
    read_until(reader, b"child's")
    assert os.waitpid(child, 0)[1] == 0
