"""The items of a generator that runs in a worker, as an iterator here.

    loop thread:  add(item) ... add(item)  finish(outcome)
                     |                        |
                     v                        v
                  [ Stream: at most a window ahead of its reader ] --> next(), anext()
                                        reader --credit--> worker continues

The call's sink holds the `Stream`, and the caller holds the `RemoteIterator` over it. So flashpool
notices when the iterator is no longer referenced, and cancels the call.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Any

from flashpool.pool._child import wire
from flashpool.pool._child.serialization import payload
from flashpool.pool.calls import Outcome, Receipt

from . import interrupts, tracebacks
from .engine import Engine, close_all
from .tasks import Task

#: Items that are read before the worker gets credit; a message for each item would be wasteful.
_CREDIT_EVERY = wire.WINDOW // 2

_Item = tuple[bytes, tuple[int, ...]]


class RemoteIterator(Iterator[Any], AsyncIterator[Any]):
    """Iterates over what a call yields, while it yields; synchronous and asynchronous.

    An exception of the generator is raised in its place: after the items before it. `close`, or
    dropping the last reference, cancels the call.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __iter__(self) -> RemoteIterator:
        return self

    def __next__(self) -> Any:
        return _load(self._stream.take())

    def __aiter__(self) -> RemoteIterator:
        return self

    async def __anext__(self) -> Any:
        return _load(await self._stream.take_async())

    def close(self) -> None:
        """Cancel the call; the iterator is then at its end."""
        self._stream.close()

    async def aclose(self) -> None:
        """Close the iterator, for ``contextlib.aclosing``."""
        self._stream.close()

    @property
    def receipt(self) -> Receipt | None:
        """What the call cost; None before it ends."""
        return self._stream.receipt

    def __del__(self) -> None:
        self._stream.close()


class Stream:
    """Items on their way from the loop thread to one reader."""

    def __init__(self, engine: Engine, task: Task) -> None:
        self._engine = engine
        self._task = task
        # Reentrant: the garbage collector may close a stream inside any other call.
        self._changed = threading.Condition()
        self._items: deque[_Item] = deque()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._uncredited = 0
        self._ended = False
        #: How the generator ended: an exception, or the outcome that holds one.
        self._error: BaseException | Outcome | None = None
        self.receipt: Receipt | None = None

    # Loop thread.

    def add(self, body: bytes, fds: tuple[int, ...]) -> None:
        """Add an item."""
        with self._changed:
            if self._ended:
                close_all(fds)
                return
            self._items.append((body, fds))
            self._wake()

    def finish(self, outcome: Outcome) -> None:
        """Note that no more items come; an exception is raised after the items before it."""
        self.receipt = outcome.receipt
        self._end(None if outcome.ok else outcome)

    def end_if_unread(self) -> None:
        """Cancel the call if it waits for a reader."""
        with self._changed:
            self._give_credit()
            stalled = len(self._items) >= wire.WINDOW
        if stalled:
            self._engine.cancel(
                self._task,
                "the pool was shut down while more items than the window holds were waiting to be read",
            )

    def fail(self, error: BaseException) -> None:
        """Fail the stream of a call that gets no outcome."""
        self._end(error)

    def _end(self, error: BaseException | Outcome | None) -> None:
        with self._changed:
            if not self._ended:
                self._ended, self._error = True, error
            self._wake()

    def _wake(self) -> None:
        self._changed.notify_all()
        waiters, self._waiters = self._waiters, []
        for loop, waiter in waiters:
            try:
                loop.call_soon_threadsafe(_resolve, waiter)
            except RuntimeError:
                # That loop is closed, so no code waits on it any more.
                pass

    # The reader's threads.

    def take(self) -> _Item:
        """Wait for the next item. Raises StopIteration, or the generator's exception.

        An interrupt (Ctrl-C) of the wait cancels the call.
        """
        with self._changed:
            while (item := self._take_now()) is None:
                try:
                    self._changed.wait()
                except KeyboardInterrupt:
                    interrupts.cancel((self,))
                    raise
        return item

    async def take_async(self) -> _Item:
        """Wait for the next item without blocking the event loop."""
        loop = asyncio.get_running_loop()
        while True:
            with self._changed:
                item = self._take_now_or_end()
                if isinstance(item, BaseException):
                    break
                if item is not None:
                    return item
                waiter = loop.create_future()
                self._waiters.append((loop, waiter))
            await waiter
        # A coroutine cannot raise StopIteration.
        if isinstance(item, StopIteration):
            raise StopAsyncIteration
        raise item

    def _take_now(self) -> _Item | None:
        item = self._take_now_or_end()
        if isinstance(item, BaseException):
            raise item
        return item

    def _take_now_or_end(self) -> _Item | BaseException | None:
        if self._items:
            self._uncredited += 1
            if self._uncredited >= _CREDIT_EVERY:
                self._give_credit()
            return self._items.popleft()
        if not self._ended:
            return None
        # As with a local generator, the exception is raised once.
        error, self._error = self._error, None
        if isinstance(error, Outcome):
            return tracebacks.restore(error)
        return error if error is not None else StopIteration()

    def _give_credit(self) -> None:
        if self._uncredited and not self._ended:
            self._engine.credit(self._task, self._uncredited)
        self._uncredited = 0

    def running(self) -> bool:
        """Return whether the generator may yield more."""
        return not self._ended

    def close(self) -> None:
        """Drop unread items, and cancel the call."""
        self.cancel()

    def cancel(self) -> bool:
        """Close the stream; return False if it has ended."""
        with self._changed:
            items, self._items = self._items, deque()
            running = not self._ended
            self._ended, self._error = True, None
            self._wake()
        for _, fds in items:
            close_all(fds)
        if running:
            self._engine.cancel(self._task)
        return running

    def abandon(self, error: BaseException) -> None:
        """Fail the stream in a fork, where its locks may be held by threads that do not exist."""
        self._changed = threading.Condition()
        self._waiters = []
        self._ended, self._error = True, error


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _load(item: _Item) -> Any:
    """Unpickle an item in the reader's thread, so that it delays no other code."""
    body, fds = item
    return payload.load_result(body, list(fds))
