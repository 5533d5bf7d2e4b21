"""One epoll for all descriptors of zygotes and workers, nested in an asyncio loop.

A descriptor costs one ``epoll_ctl`` here, where a loop's reader costs a handle, a context
and, with uvloop, a libuv poll. Handlers run on the loop's thread.

    readable --> ready(owner, fd, writable) --raises--> counted, the descriptor is forgotten,
                                                        failed(owner, error)

The epoll is level-triggered, so a handler that raises would be called again at once, forever.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Any, Final, TypeAlias, TypeVar

from flashpool.pool.recorder import Recorder

_Owner = TypeVar("_Owner")

#: Returns monotonic seconds.
Clock: TypeAlias = Callable[[], float]
#: Events handled in one turn, before the loop continues with other work.
_TURN: Final = 128
_WRITABLE: Final = select.EPOLLOUT


class Poller:
    """Calls a handler when its descriptor is readable or, if requested, writable."""

    def __init__(self, loop: asyncio.AbstractEventLoop, recorder: Recorder) -> None:
        self._loop = loop
        self._recorder = recorder
        self._epoll = select.epoll()
        #: By descriptor: the owner, the function to call, and the function for its errors.
        self._watched: dict[int, tuple[Any, Callable[..., None], Callable[..., None]]] = {}
        loop.add_reader(self._epoll.fileno(), self._serve)

    def __len__(self) -> int:
        return len(self._watched)

    def watch(
        self,
        fd: int,
        owner: _Owner,
        ready: Callable[[_Owner, int, bool], None],
        failed: Callable[[_Owner, Exception], None],
    ) -> None:
        """Call ``ready(owner, fd, writable)`` when the descriptor is readable or at its end.

        If ``ready`` raises, ``failed`` is called once, to end the owner of the descriptor.
        """
        self._watched[fd] = owner, ready, failed
        self._epoll.register(fd, select.EPOLLIN)

    def want_to_write(self, fd: int, wanted: bool) -> None:
        """Set whether the handler is also called when the descriptor is writable."""
        if fd in self._watched:
            self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if wanted else 0))

    def forget(self, *fds: int) -> None:
        """Stop watching, before the descriptors are closed; harmless if they are not watched."""
        for fd in fds:
            if self._watched.pop(fd, None) is not None:
                self._epoll.unregister(fd)

    def close(self) -> None:
        """Remove the epoll from the loop and close it."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _serve(self) -> None:
        """Handle one turn of events; the kernel reports those that are left over again.

        A handler may close a descriptor that is further down the list, and a new descriptor may
        get its number: handlers must tolerate calls without an event.
        """
        for fd, events in self._epoll.poll(0, _TURN):
            watched = self._watched.get(fd)
            if watched is None:
                continue
            owner, ready, _ = watched
            try:
                ready(owner, fd, events & _WRITABLE != 0)
            except Exception as error:  # noqa: BLE001 - counted, and ends its owner
                self._failed(fd, watched, error)

    def _failed(
        self,
        fd: int,
        watched: tuple[Any, Callable[..., None], Callable[..., None]],
        error: Exception,
    ) -> None:
        owner, _, failed = watched
        if self._watched.get(fd) is watched:
            self.forget(fd)
        self._recorder.callback_failed(f"what came from {owner!r}", error)
        with self._recorder.counted(f"the end of {owner!r}"):
            failed(owner, error)
