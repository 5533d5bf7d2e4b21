"""Futures of a pool's calls, and the sinks that settle them.

A `CallFuture` is a `concurrent.futures.Future` whose `cancel` also stops a call that runs. A
`CallSink` receives the call's events on the loop thread, and settles the future on the delivery
thread. After that neither refers to the other, and the pool refers to neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Generator
from concurrent.futures import Future, InvalidStateError
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING
from typing import TYPE_CHECKING, Any, TypeVar

from flashpool.pool._child.serialization import payload
from flashpool.pool.calls import Outcome, Receipt
from flashpool.pool.errors import PoolClosed, ResultNotSerializable

from . import interrupts, tracebacks
from .engine import Engine, close_all
from .shown_output import show, show_line
from .streams import RemoteIterator, Stream

if TYPE_CHECKING:
    from flashpool.envs import Spec

T = TypeVar("T")


class CallFuture(Future[T]):
    """The future of one call."""

    #: What the call cost and where it ran; None before it ends, and if it was cancelled while
    #: queued.
    receipt: Receipt | None = None
    #: The call's standard output and standard error, bounded; set with the receipt.
    output: bytes = b""
    #: Warnings about how the call ran, one sentence each.
    warnings: tuple[str, ...] = ()
    _sink: CallSink | None = None
    _call_id: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self._waiters = interrupts.Waiters(self)

    @property
    def call_id(self) -> int | None:
        """The call's number in statistics and logs, for `Pool.cancel`; None if it was not accepted.

        May wait a moment until the call has a number.
        """
        sink = self._sink
        return self._call_id if sink is None else sink.wait_for_id()

    def result(self, timeout: float | None = None) -> T:
        """Return the result, as `Future.result` does.

        An interrupt (Ctrl-C) of the wait cancels the call.
        """
        try:
            return super().result(timeout)
        except KeyboardInterrupt:
            interrupts.cancel((self,))
            raise
        finally:
            # The future holds the exception, whose traceback holds this frame.
            del self

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the exception, as `Future.exception` does.

        An interrupt (Ctrl-C) of the wait cancels the call.
        """
        try:
            return super().exception(timeout)
        except KeyboardInterrupt:
            interrupts.cancel((self,))
            raise

    def cancel(self) -> bool:
        """Cancel the call, queued or running; the process tree of a running call is killed.

        Unlike in other executors, this also succeeds for a running call.
        """
        with self._condition:
            if self._state == FINISHED:
                return False
            if self._state in (CANCELLED, CANCELLED_AND_NOTIFIED):
                return True
            # Set the notified state directly, and notify the waiters here: `wait` and
            # `as_completed` only count that state, and no other code would notify them.
            self._state = CANCELLED_AND_NOTIFIED
            sink = self._take_sink()
            for waiter in self._waiters:
                waiter.add_cancelled(self)
            self._condition.notify_all()
        if sink is not None:
            sink.cancelled()
        self._invoke_callbacks()  # type: ignore[attr-defined]
        return True

    def __await__(self) -> Generator[Any, None, T]:
        """Wait for the result in a coroutine, without blocking the loop."""
        return asyncio.wrap_future(self).__await__()

    def _take_sink(self) -> CallSink | None:
        sink, self._sink = self._sink, None
        if sink is not None:
            self._call_id = sink.call_id
        return sink

    def start_running(self) -> None:
        """Set the future to running, unless it was cancelled."""
        with self._condition:
            if self._state == PENDING:
                self._state = RUNNING

    def finish(self, result: Any, error: BaseException | None) -> bool:
        """Set the result or exception; return False if the future was cancelled meanwhile."""
        self._take_sink()
        try:
            if error is None:
                self.set_result(result)
            else:
                self.set_exception(error)
        except InvalidStateError:
            return False
        return True


def failed(error: BaseException) -> CallFuture[Any]:
    """Return the future of a call that could not be made."""
    future: CallFuture[Any] = CallFuture()
    future.set_exception(error)
    return future


class CallSink:
    """Receives the events of one call; the engine's `Task`."""

    __slots__ = ("_engine", "_future", "_stream", "call_id", "waits_for", "wants_output")

    def __init__(
        self, engine: Engine, future: CallFuture[Any], *, stream: bool, show_output: bool
    ) -> None:
        self._engine = engine
        self._future: CallFuture[Any] | None = future
        self._stream = Stream(engine, self) if stream else None
        self.call_id: int | None = None
        self.waits_for: Spec | None = None
        self.wants_output = show_output
        future._sink = self

    # Loop thread.

    def started(self) -> None:
        """Note that a worker has received the call."""
        if self._future is not None:
            self._future.start_running()

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

    def item(self, body: bytes, fds: tuple[int, ...]) -> None:
        """Receive an item of a stream; the first makes the iterator the future's result."""
        stream = self._stream
        if stream is None:
            close_all(fds)
            return
        stream.add(body, fds)
        self._hand_out(stream, None)
        if self._engine.closed:
            stream.end_if_unread()

    def done(self, outcome: Outcome) -> None:
        """Receive the outcome."""
        self._engine.ended(self)
        stream = self._stream
        if stream is None or (self._future is not None and not _is_of_generator(outcome)):
            self._engine.deliver(self._settle, outcome)
            return
        self._hand_out(stream, outcome)
        stream.finish(outcome)

    def closing(self) -> None:
        """Note that the pool closes: end a stalled stream, which may have no reader any more."""
        if self._stream is not None:
            self._stream.end_if_unread()

    def _hand_out(self, stream: Stream, outcome: Outcome | None) -> None:
        future, self._future = self._future, None
        if future is not None:
            self._engine.deliver(_finish_with, future, stream, outcome)

    # Delivery thread.

    def _settle(self, outcome: Outcome) -> None:
        future, self._future = self._future, None
        if future is None:
            close_all(outcome.fds)
            return
        future.receipt, future.output = outcome.receipt, outcome.output
        future.warnings = outcome.warnings
        if future.cancelled():
            close_all(outcome.fds)
            return
        future.finish(*decode(outcome))

    def fail(self, error: BaseException) -> None:
        """Fail the future of a call that gets no outcome."""
        future, self._future = self._future, None
        if future is not None:
            future.finish(None, error)
        elif self._stream is not None:
            self._stream.fail(error)

    # Any thread.

    def is_queued(self) -> bool:
        """Return whether the call has no worker yet and is not cancelled."""
        future = self._future
        return future is not None and future._state == PENDING

    def running(self) -> bool:
        """Return whether a worker has, or had, the call."""
        return not self.is_queued()

    def is_over(self) -> bool:
        """Return whether the future was cancelled, or the iterator closed."""
        future = self._future
        if future is not None:
            return future.done()
        return self._stream is None or not self._stream.running()

    def cancel(self) -> bool:
        """Cancel the future, or the stream it became."""
        future = self._future
        if future is not None and future.cancel():
            return True
        running = self._stream is not None and self._stream.running()
        self._engine.cancel(self)
        return running

    def wait_for_id(self) -> int | None:
        """Return the call's id; None if the backend did not accept it."""
        if self.call_id is None:
            with contextlib.suppress(PoolClosed):
                # The question does not matter: its answer comes after the submission.
                self._engine.ask(int)
        return self.call_id

    def cancelled(self) -> None:
        """Cancel the call, because the future was cancelled."""
        self._engine.cancel(self)

    def abandon(self, error: BaseException) -> None:
        """Fail the call in a fork: free locks of missing threads, drop the parent's callbacks."""
        future, self._future = self._future, None
        if future is not None:
            future._condition = threading.Condition()
            future._done_callbacks = []  # type: ignore[attr-defined]
            future._waiters.clear()
            future.finish(None, error)
        if self._stream is not None:
            self._stream.abandon(error)


def _is_of_generator(outcome: Outcome) -> bool:
    """Return whether the generator itself caused this outcome, and not the pool."""
    return outcome.ok or outcome.from_user


def _finish_with(future: CallFuture[Any], stream: Stream, outcome: Outcome | None) -> None:
    if outcome is not None:
        future.receipt, future.output = outcome.receipt, outcome.output
        future.warnings = outcome.warnings
    # If the future was cancelled meanwhile, dropping the iterator cancels the call.
    future.finish(RemoteIterator(stream), None)


def decode(outcome: Outcome) -> tuple[Any, BaseException | None]:
    """Return the result, or the exception."""
    if not outcome.ok:
        return None, tracebacks.restore(outcome)
    try:
        return payload.load_result(outcome.body, list(outcome.fds)), None
    except BaseException as error:  # noqa: BLE001 - the class's own code; its exit must not be ours
        failure = ResultNotSerializable(
            f"the call ended well, but its result cannot be unpickled here: {type(error).__name__}: {error}"
        )
        failure.__cause__ = error
        return None, failure
