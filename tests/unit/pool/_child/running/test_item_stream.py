"""A generator's items: at most a window is sent ahead of the reader; credit extends the window."""

import asyncio
import socket

import pytest

from flashpool.pool._child import wire
from flashpool.pool._child.channel import Channel
from flashpool.pool._child.running.item_stream import ChannelCredit, ItemSender, LinkCredit
from flashpool.pool._child.running.resident_link import ResidentLink

NUMBER = 7


class Reader:
    """The reader's end of a channel."""

    def __init__(self):
        self.sock, worker = socket.socketpair()
        self.channel = Channel(worker.detach())
        self.sent = []

    def close(self):
        self.sock.close()
        self.channel.sock.close()

    def grant(self, items, meta=b""):
        meta += wire.CREDIT_META.pack(items)
        self.sock.sendall(wire.head(wire.CREDIT, meta, 0, 0))

    def sender(self, credit):
        return ItemSender(lambda body, fds: self.sent.append(body), lambda item: (item, []), credit)


@pytest.fixture
def reader():
    reader = Reader()
    yield reader
    reader.close()


@pytest.fixture
def link(reader):
    return ResidentLink(reader.channel, None)


def test_with_the_window_used_up_a_worker_reads_credit(reader):
    items = reader.sender(ChannelCredit(reader.channel))
    for _ in range(wire.WINDOW):
        items(b"x")
    reader.grant(2)
    items(b"y")
    items(b"y")
    assert reader.sent[wire.WINDOW :] == [b"y", b"y"]
    reader.sock.shutdown(socket.SHUT_WR)
    with pytest.raises(wire.Closed):
        items(b"z")


def test_waiting_for_credit_does_not_block_other_tasks(reader):
    async def story():
        items = reader.sender(ChannelCredit(reader.channel))
        items.left = 0
        waiting = asyncio.ensure_future(items.room())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        reader.grant(3)
        await asyncio.wait_for(waiting, 10)
        assert items.left == 3

    asyncio.run(story())


def test_a_plain_call_of_a_resident_skips_credit_of_other_calls(reader, link):
    credit = LinkCredit(link, asyncio.get_running_loop)
    link.streams[NUMBER] = credit.add
    items = reader.sender(credit)
    items.left = 0
    reader.grant(5, wire.NUMBER.pack(NUMBER + 1))
    reader.grant(2, wire.NUMBER.pack(NUMBER))
    items(b"x")
    assert (reader.sent, items.left) == ([b"x"], 1)


def test_early_credit_for_a_residents_call_is_kept(reader, link):
    credit = LinkCredit(link, asyncio.get_running_loop)
    credit.add(4)
    items = reader.sender(credit)
    for _ in range(wire.WINDOW + 4):
        items(b"x")
    reader.sock.shutdown(socket.SHUT_WR)
    with pytest.raises(wire.Closed):
        items(b"x")


def test_an_overlapping_call_of_a_resident_waits_until_its_credit_is_added(reader, link):
    async def story():
        credit = LinkCredit(link, asyncio.get_running_loop)
        items = reader.sender(credit)
        items.left = 0
        waiting = asyncio.ensure_future(items.room())
        await asyncio.sleep(0)
        assert not waiting.done()
        credit.add(1)
        await asyncio.wait_for(waiting, 10)
        assert items.left == 1

    asyncio.run(story())
