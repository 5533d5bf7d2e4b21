"""Streams of a generator's items: at most a window of items is sent ahead of the reader."""

from __future__ import annotations

from .. import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from typing import Any

    from ..channel import Channel
    from .resident_link import ResidentLink


class ItemSender:
    """Sends a generator's items, at most a window of items ahead of the reader."""

    def __init__(self, channel: Channel, dump: Callable[[Any], tuple[bytes, list[int]]]) -> None:
        self.channel = channel
        self.dump = dump
        self.left = wire.WINDOW

    def __call__(self, item: Any) -> None:
        """Send one item; blocks while the window is used up."""
        while self.left == 0:
            self._take_credit()
        self.left -= 1
        body, fds = self.dump(item)
        self.channel.send(wire.ITEM, b"", body, fds)

    async def room(self) -> None:
        """Until the window is open, without blocking the loop."""
        while self.left == 0:
            if not self.channel.frames:
                await readable(self.channel.fd)
            self._take_credit()

    def _take_credit(self) -> None:
        self.left += wire.CREDIT_META.unpack(self.channel.receive().meta)[0]


async def readable(fd: int) -> None:
    """Until there is something to read."""
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


class ResidentItems:
    """Sends a generator's items, at most a window of items ahead of the reader."""

    def __init__(
        self,
        link: ResidentLink,
        number: int,
        dump: Callable[[Any], tuple[bytes, list[int]]],
        loop: Callable[[], asyncio.AbstractEventLoop],
    ) -> None:
        self.link = link
        self.loop = loop
        self.number = wire.NUMBER.pack(number)
        self.dump = dump
        self.left = wire.WINDOW
        #: Set while somebody waits for the window to open, on the loop.
        self.opened: asyncio.Future[None] | None = None

    def __call__(self, item: Any) -> None:
        """Send one item; blocks while the window is used up, as no other call runs then."""
        while self.left == 0:
            self.take()
        self.left -= 1
        body, fds = self.dump(item)
        self.link.send_frame(wire.ITEM, self.number, body, fds)

    async def room(self) -> None:
        """Until the window is open, without blocking the loop."""
        while self.left == 0:
            self.opened = self.loop().create_future()
            await self.opened

    def take(self) -> None:
        """Wait for the next frame; while a call runs alone it is a credit."""
        self.link.take_credit(self.link.channel.receive())

    def add(self, items: int) -> None:
        """Its reader took some."""
        self.left += items
        if self.opened is not None and not self.opened.done():
            self.opened.set_result(None)
