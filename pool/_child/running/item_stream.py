"""Streams of a generator's items: at most a window of items is sent ahead of the reader.

    generator --item--> ItemSender --ITEM--> supervisor --> reader
                            ^                                 |
                            '----- credit <-----CREDIT--------'  for every few items taken

The two kinds of credit differ in how it arrives. The only call of a worker reads it from the
channel itself (`ChannelCredit`). The calls of a resident share a channel, and `ResidentLink` adds
to the credit of the call that a frame names (`LinkCredit`).
"""

from __future__ import annotations

from .. import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from typing import Any

    from ..channel import Channel
    from .resident_link import ResidentLink

    Send = Callable[[bytes, list[int]], None]


class ItemSender:
    """Sends a generator's items, at most a window of items ahead of the reader."""

    def __init__(
        self,
        send: Send,
        dump: Callable[[Any], tuple[bytes, list[int]]],
        credit: ChannelCredit | LinkCredit,
    ) -> None:
        self.send = send
        self.dump = dump
        self.credit = credit
        self.left = wire.WINDOW

    def __call__(self, item: Any) -> None:
        """Send one item; block while the window is used up."""
        while self.left == 0:
            self.left += self.credit.take()
        self.left -= 1
        body, fds = self.dump(item)
        self.send(body, fds)

    async def room(self) -> None:
        """Wait until an item may be sent, without blocking the loop."""
        while self.left == 0:
            await self.credit.wait()
            self.left += self.credit.take()


class ChannelCredit:
    """Credit for the only call of a worker: no other frames arrive on its channel."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def take(self) -> int:
        """Return how many more items may be sent; block until that is at least one."""
        count: int = wire.CREDIT_META.unpack(self.channel.receive().meta)[0]
        return count

    async def wait(self) -> None:
        """Wait until `take` has something to read."""
        if not self.channel.frames:
            await readable(self.channel.fd)


class LinkCredit:
    """Credit for one of a resident's calls."""

    def __init__(self, link: ResidentLink, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self.link = link
        self.loop = loop
        self.count = 0
        #: Set while a task waits for credit on the loop.
        self.added: asyncio.Future[None] | None = None

    def add(self, items: int) -> None:
        """Add credit, because the reader has taken items."""
        self.count += items
        if self.added is not None and not self.added.done():
            self.added.set_result(None)

    def take(self) -> int:
        """Return how many more items may be sent; block until that is at least one.

        It blocks only while no other call runs.
        """
        while self.count == 0:
            self.link.take_credit(self.link.channel.receive())
        count, self.count = self.count, 0
        return count

    async def wait(self) -> None:
        """Wait for credit, which the loop's handler of the channel adds."""
        while self.count == 0:
            self.added = self.loop().create_future()
            await self.added


async def readable(fd: int) -> None:
    """Wait until the descriptor is readable."""
    import asyncio

    loop = asyncio.get_running_loop()
    found = loop.create_future()

    def settle() -> None:
        if not found.done():
            found.set_result(None)

    loop.add_reader(fd, settle)
    try:
        await found
    finally:
        loop.remove_reader(fd)
