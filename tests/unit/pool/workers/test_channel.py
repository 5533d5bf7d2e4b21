"""The supervisor's end of a worker's channel, with a socket in the worker's place."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from flashpool.pool._child import wire
from flashpool.pool.workers.channel import WorkerChannel

FRAME = wire.head(wire.ITEM, b"", 4, 0) + b"body"


@pytest.fixture
def ends() -> Iterator[tuple[WorkerChannel, socket.socket]]:
    near, far = socket.socketpair()
    output, printed = os.pipe()
    link = WorkerChannel(near.detach(), output, output_limit=1000, body_limit=1000)
    far.setblocking(False)
    with far:
        yield link, far
    link.close()
    os.close(printed)


Ends = tuple[WorkerChannel, socket.socket]


def test_all_that_a_dead_worker_sent_is_read(ends: Ends) -> None:
    link, worker = ends
    worker.send(FRAME * 2000 + FRAME[:7])
    worker.close()
    assert sum(1 for _ in link.read_last()) == 2000
    assert list(link.read_last()) == []


def test_the_channel_knows_whether_the_worker_read_everything(ends: Ends) -> None:
    link, worker = ends
    link.send(wire.CALL, b"", b"never read")
    worker.send(FRAME)
    worker.close()
    assert len(list(link.read_last())) == 1
    assert link.unread


def test_a_writer_that_never_stops_is_not_read_for_ever(ends: Ends) -> None:
    link, worker = ends
    worker.send(FRAME * 10)
    read = 0
    for _ in link.read_last():
        read += 1
        worker.send(FRAME * 2)
        assert read < 100
    assert read >= 10


def test_a_malformed_frame_is_reported_after_the_valid_ones(ends: Ends) -> None:
    link, worker = ends
    worker.send(FRAME * 3)
    worker.send(b"x" * 100)
    last = link.read_last()
    assert [next(last).body for _ in range(3)] == [b"body"] * 3
    worker.send(b"x")
    with pytest.raises(wire.BadFrame, match="begins with"):
        next(last)


def test_other_channels_are_served_while_a_large_frame_arrives() -> None:
    near, far = socket.socketpair()
    output, printed = os.pipe()
    link = WorkerChannel(near.detach(), output, output_limit=1000, body_limit=1 << 30)
    frame = memoryview(wire.head(wire.RESULT, b"", 16 << 20, 0) + bytes(16 << 20))
    with far:
        sender = threading.Thread(target=far.sendall, args=(frame,))
        sender.start()
        turns = 0
        while (found := link.read()) == []:
            turns += 1
        sender.join()
    assert found is not None
    assert len(found[0].body) == 16 << 20
    assert turns >= 15
    link.close()
    os.close(printed)
