"""`Pool.map`: arguments into chunks, calls into results, in order.

    arguments --chunks--> MapCall --(all at once, or a window ahead)--> Engine
    reader <-- unpickle, here <-- outcome <-- (wakes the reader if it waits for it) -- loop thread

Only the reader sees these calls, so they need no futures: no callbacks, no other waiters, no state
to lock. Without futures, and with the reader instead of the delivery thread unpickling the results,
a call saves the wake-up of a thread and a good part of the cost of a small call.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from itertools import islice
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from flashpool.pool.calls import Outcome

from . import interrupts
from .engine import Engine, close_all
from .futures import decode
from .shown_output import show, show_line

if TYPE_CHECKING:
    from flashpool.envs import Spec


class ResultWaiter:
    """Where the reader of a map waits for the call whose result it needs next."""

    __slots__ = ("_awaited", "_opened")

    def __init__(self) -> None:
        self._awaited: MapCall | None = None
        self._opened: SimpleQueue[None] = SimpleQueue()

    def wait(self, call: MapCall, timeout: float | None) -> None:
        """Wait until the call has ended.

        Raises:
            TimeoutError: the call did not end in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        self._awaited = call
        # A wake-up for an earlier call only costs one more turn of this loop.
        while call.end is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise FutureTimeout
            try:
                self._opened.get(timeout=left)
            except Empty:
                raise FutureTimeout from None

    def open_for(self, call: MapCall) -> None:
        """Wake the reader if it waits for this call, which has ended."""
        # The reader sets `_awaited` and then looks at the call; here the call ends before we look.
        if self._awaited is call:
            self._opened.put(None)


class MapCall:
    """One call of a map; the engine's `Task`."""

    __slots__ = (
        "_engine",
        "_gate",
        "_started",
        "_unsettled",
        "call_id",
        "end",
        "waits_for",
        "wants_output",
    )

    def __init__(self, engine: Engine, gate: ResultWaiter, *, show_output: bool) -> None:
        self._engine = engine
        self._gate = gate
        self._started = False
        #: The thread that takes the element settles the call: the loop's, or any in `cancel`.
        self._unsettled = [True]
        #: The outcome, its value (in a tuple), or the reason for having neither.
        self.end: Outcome | tuple[Any] | BaseException | None = None
        self.call_id: int | None = None
        self.waits_for: Spec | None = None
        self.wants_output = show_output

    # The reader's thread.

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the call; return its value or raise its exception."""
        if self.end is None:
            self._gate.wait(self, timeout)
        end, self.end = self.end, _READ
        if isinstance(end, Outcome):
            value, error = decode(end)
            if error is None:
                return value
            end = error
        if isinstance(end, tuple):
            return end[0]
        try:
            raise end  # type: ignore[misc]
        finally:
            # The exception's traceback holds this frame.
            del end, self

    # Any thread.

    def cancel(self) -> bool:
        """Cancel the call; return False if it has ended."""
        settled = self._settle(CancelledError())
        if settled:
            self._engine.cancel(self)
        return settled

    def is_queued(self) -> bool:
        """Return whether the call has no worker yet and is not cancelled."""
        return self.end is None and not self._started

    def running(self) -> bool:
        """Return whether a worker has, or had, the call."""
        return self._started

    def is_over(self) -> bool:
        """Return whether the call was cancelled."""
        return self.end is not None

    def abandon(self, error: BaseException) -> None:
        """Fail the call in a fork, where it would never end."""
        self._settle(error)

    def _settle(self, end: Outcome | tuple[Any] | BaseException) -> bool:
        try:
            self._unsettled.pop()
        except IndexError:
            return False
        self.end = end
        self._gate.open_for(self)
        return True

    # Loop thread.

    def started(self) -> None:
        """Note that a worker has received the call."""
        self._started = True

    def told(self, line: str) -> None:
        """Show the progress of the environment."""
        if self.wants_output and self._engine.narrates(self):
            show_line(self._engine, line)

    def environment_ready(self) -> None:
        """Note that the call waits for a slot."""
        self._engine.environment_ready(self)

    def output(self, chunk: bytes, *, stderr: bool = False) -> None:
        """Show what the call wrote."""
        show(self._engine, chunk, stderr=stderr)

    def item(self, _body: bytes, fds: tuple[int, ...]) -> None:
        """Ignore items."""
        close_all(fds)

    def closing(self) -> None:
        """Do nothing: the call finishes as usual."""

    def done(self, outcome: Outcome) -> None:
        """Receive the outcome."""
        self._engine.ended(self)
        if outcome.fds:
            # Results that the reader does not fetch for a while must not hold descriptors.
            self._engine.deliver(self._load, outcome)
        else:
            self._settle(outcome)

    # Delivery thread.

    def _load(self, outcome: Outcome) -> None:
        if self.end is not None:
            close_all(outcome.fds)
            return
        value, error = decode(outcome)
        self._settle((value,) if error is None else error)

    def fail(self, error: BaseException) -> None:
        """Fail a call that gets no outcome."""
        self._settle(error)


#: Replaces the end of a call that the reader has fetched.
_READ = CancelledError("its result was read")


class Failed:
    """Takes the place of a call that could not be made."""

    __slots__ = ("_error",)

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def result(self, _timeout: float | None = None) -> Any:
        """Raise the error."""
        raise self._error

    def running(self) -> bool:
        """Return False: the call never runs."""
        return False

    def cancel(self) -> bool:
        """Do nothing: no call exists."""
        return False


AnyCall = MapCall | Failed


def check_sizes(chunksize: int, buffersize: int | None) -> None:
    """Raise ValueError or TypeError unless both are whole numbers of at least 1."""
    if chunksize < 1:
        raise ValueError("chunksize must be >= 1")
    if buffersize is None:
        return
    if not isinstance(buffersize, int):
        raise TypeError("buffersize must be an integer or None")
    if buffersize < 1:
        raise ValueError("buffersize must be None or > 0")


def chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield the items in lists of ``size``; the last list may be shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def results(
    calls: Iterator[AnyCall], buffersize: int | None, timeout: float | None, *, chunked: bool
) -> Iterator[Any]:
    """Submit (now, not at the first ``next``), and return an iterator over the results."""
    deadline = None if timeout is None else time.monotonic() + timeout
    waiting: deque[AnyCall] = deque()
    try:
        waiting.extend(islice(calls, buffersize))
    except KeyboardInterrupt:
        interrupts.cancel(waiting)
        raise
    except BaseException:
        _cancel(waiting)
        raise
    rest = calls if buffersize is not None else iter(())
    one_by_one = _in_order(waiting, rest, deadline)
    return _flat(one_by_one) if chunked else one_by_one


def _in_order(
    waiting: deque[AnyCall], rest: Iterator[AnyCall], deadline: float | None
) -> Iterator[Any]:
    try:
        while waiting:
            waiting.extend(islice(rest, 1))
            # No variable here holds the call or its result, so the caller has the only reference.
            yield _result(waiting, deadline)
    except KeyboardInterrupt:
        interrupts.cancel(waiting)
        raise
    finally:
        _cancel(waiting)


def _result(waiting: deque[AnyCall], deadline: float | None) -> Any:
    call = waiting[0]
    try:
        value = call.result(None if deadline is None else deadline - time.monotonic())
        waiting.popleft()
        return value
    finally:
        # A traceback of an exception holds this frame.
        del call


def _flat(chunks: Iterator[list[Any]]) -> Iterator[Any]:
    try:
        for chunk in chunks:
            chunk.reverse()
            while chunk:
                yield chunk.pop()
    finally:
        chunks.close()  # type: ignore[attr-defined]


def _cancel(calls: Iterable[AnyCall]) -> None:
    for call in calls:
        call.cancel()
