"""One epoll for all descriptors of zygotes and workers, nested in an asyncio loop.

A descriptor costs one ``epoll_ctl`` here, where a loop's reader costs a handle, a context
and, with uvloop, a libuv poll. Handlers run on the loop's thread.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Final, TypeAlias

#: Tells monotonic seconds.
Clock: TypeAlias = Callable[[], float]
#: Events served in one go, before the loop serves others.
_TURN: Final = 128


class Poller:
    """Calls a handler when its descriptor can be read, or written if that is asked for."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[bool], None]] = {}
        loop.add_reader(self._epoll.fileno(), self._serve)

    def __len__(self) -> int:
        return len(self._handlers)

    def watch(self, fd: int, handler: Callable[[bool], None]) -> None:
        """Call ``handler(writable)`` when there is something to read, or it is at its end."""
        self._handlers[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def want_to_write(self, fd: int, wanted: bool) -> None:
        """Call the handler when the descriptor can be written to as well, or no more."""
        if fd in self._handlers:
            self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if wanted else 0))

    def forget(self, *fds: int) -> None:
        """Stop watching, before the descriptors are closed; harmless when already done."""
        for fd in fds:
            if self._handlers.pop(fd, None) is not None:
                self._epoll.unregister(fd)

    def close(self) -> None:
        """Leave the loop."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _serve(self) -> None:
        """One round: level-triggered, so what is not served now is reported again.

        A handler may have closed a descriptor that is further down the list, and a new
        one may have its number: handlers bear being called for nothing.
        """
        for fd, events in self._epoll.poll(0, _TURN):
            handler = self._handlers.get(fd)
            if handler is not None:
                handler(bool(events & select.EPOLLOUT))
