"""Where functions of jobs run: coroutines together on the loop, other functions in a place.

    one job at a time    on the main thread, while the loop stands still, as on the platform
    several              each on a thread of its own

Code with an affinity to the main thread (signals, a database connection that an import created)
works in the first case as it does without flashpool. No loop runs there, so that ``asyncio.run``
works, too. A function that is not a coroutine cannot be cancelled: cancelling waits for its end.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections import deque

# Not imported late, when it would find a `queue.py` of the user's.
from concurrent.futures.thread import ThreadPoolExecutor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any, Protocol

    #: Whether the function returned, and its result or exception.
    End = tuple[bool, Any]

    class Place(Protocol):
        """Where functions of jobs that are not coroutines run."""

        def begin(self, ended: asyncio.Future[End], work: Callable[[], End]) -> None:
            """Run ``work``, now or soon, and set the future to its end."""

        def see_through(self, begin: Callable[[], asyncio.Task[End]]) -> End:
            """Start a task on the loop and wait for it; called by a function that runs here."""


class JobCall:
    """One job: its context, and the task to cancel with it."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.loop = asyncio.get_running_loop()
        self.inner: asyncio.Task[End] | None = None
        _current.set(self)
        #: One context for all functions of the job: values that a generator sets stay for its next
        #: step.
        self.context = contextvars.copy_context()

    async def away(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function that is not a coroutine; return after its end, even if cancelled."""
        ended: asyncio.Future[End] = self.loop.create_future()
        # Exceptions travel as values, because a future refuses StopIteration.
        self.place.begin(ended, lambda: self.context.run(_end_of, function, args))
        cancelled = False
        while not ended.done():
            try:
                await asyncio.shield(ended)
            except asyncio.CancelledError:
                cancelled = True
                if self.inner is not None:
                    self.inner.cancel()
        if cancelled:
            raise asyncio.CancelledError
        return _value(ended.result())

    def see_through(self, awaitable: Awaitable[Any]) -> Any:
        """Wait for an awaitable that a function returned; called in the place where it ran."""

        def begin() -> asyncio.Task[End]:
            task = self.inner = self.loop.create_task(_awaited(awaitable))
            return task

        try:
            return _value(self.place.see_through(begin))
        finally:
            self.inner = None


_current: contextvars.ContextVar[JobCall] = contextvars.ContextVar("flashpool_job")


def current() -> JobCall:
    """Return the job that the running code belongs to."""
    return _current.get()


def _end_of(function: Callable[..., Any], args: tuple[Any, ...]) -> End:
    try:
        return True, function(*args)
    except BaseException as error:  # even SystemExit ends only the job
        return False, error


async def _awaited(awaitable: Awaitable[Any]) -> End:
    try:
        return True, await awaitable
    except BaseException as error:
        return False, error


def _value(end: End) -> Any:
    returned, value = end
    if returned:
        return value
    try:
        raise value
    finally:
        del end, value  # breaks a cycle: the traceback's frame holds the exception


class OnMain:
    """The main thread, while the loop stands still; the owner calls `work` then."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, turn: Callable[[asyncio.Task[Any]], None]
    ) -> None:
        """``turn``: runs the loop until it is stopped."""
        self._loop = loop
        self._turn = turn
        self._pid = os.getpid()
        self._waiting: deque[tuple[asyncio.Future[End], Callable[[], End]]] = deque()

    def begin(self, ended: asyncio.Future[End], work: Callable[[], End]) -> None:
        """See `Place`."""
        self._waiting.append((ended, work))
        self._loop.stop()

    def work(self) -> None:
        """Run queued functions; after each, set the main thread's event loop again."""
        while self._waiting:
            ended, work = self._waiting.popleft()
            end = work()
            _leave_if_forked(self._pid)
            asyncio.set_event_loop(self._loop)
            if not ended.done():
                ended.set_result(end)

    def see_through(self, begin: Callable[[], asyncio.Task[End]]) -> End:
        """See `Place`."""
        task = begin()
        task.add_done_callback(lambda _: self._loop.stop())
        while not task.done():
            self._turn(task)
        return task.result()


class OnThreads:
    """A fixed number of threads."""

    def __init__(self, loop: asyncio.AbstractEventLoop, number: int) -> None:
        self._loop = loop
        self._pid = os.getpid()
        self._threads = ThreadPoolExecutor(number, thread_name_prefix="job")

    def begin(self, ended: asyncio.Future[End], work: Callable[[], End]) -> None:
        """See `Place`."""
        self._threads.submit(self._work, ended, work)

    def _work(self, ended: asyncio.Future[End], work: Callable[[], End]) -> None:
        end = work()
        _leave_if_forked(self._pid)
        self._loop.call_soon_threadsafe(_settle, ended, end)

    def see_through(self, begin: Callable[[], asyncio.Task[End]]) -> End:
        """See `Place`."""
        over = threading.Event()
        tasks: list[asyncio.Task[End]] = []

        def on_loop() -> None:
            task = begin()
            tasks.append(task)
            task.add_done_callback(lambda _: over.set())

        self._loop.call_soon_threadsafe(on_loop)
        over.wait()
        return tasks[0].result()


def _leave_if_forked(pid: int) -> None:
    """Exit if this is a process that a job forked: only the original process may answer."""
    if os.getpid() != pid:
        os._exit(0)


def _settle(ended: asyncio.Future[End], end: End) -> None:
    if not ended.done():
        ended.set_result(end)
