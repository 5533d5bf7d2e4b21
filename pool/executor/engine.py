"""A pool's two threads: a loop with the backend on it, and the delivery of results.

    any thread              loop thread                    delivery thread
    ----------              -----------                    ---------------
    submit, cancel -------> Backend.submit, cancel
                            Sink.done -------------------> unpickle, set the future,
                                                           and so run callbacks

Nothing of the user's runs on the loop thread: a callback that blocks
or a slow unpickle holds up other results, but never the backend.

The threads hold the engine, the engine never holds the `Pool`: a pool that nobody
references any more closes its engine, which ends its calls' work and then leaves.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from flashpool.pool.backend import Backend
from flashpool.pool.calls import Call
from flashpool.pool.errors import PoolClosed
from flashpool.pool.limits import SECONDS_MAX

from . import interpreter_exit, tracebacks
from .tasks import Task
from .thread_handoff import Deliveries, Inbox

if TYPE_CHECKING:
    from flashpool.envs import Spec

_log = logging.getLogger(__name__)

_CLOSED = "cannot schedule new futures after shutdown"


class Engine:
    """Owns the threads of one `Pool`, and the backend that runs its calls."""

    def __init__(self, backend: Backend, slots: int) -> None:
        """``slots``: calls that run at once."""
        self.pid = os.getpid()
        self._backend = backend
        self._slots = slots
        #: Whether descriptors reach the workers.
        self.shares_descriptors = backend.shares_descriptors
        #: Of those that wait for one environment, the call that shows its progress.
        self._narrators: dict[Spec, Task] = {}
        #: A dict for its order: that of submission.
        self._tasks: dict[Task, None] = {}
        #: Guards `_closed` against submissions: none slips in after the last look.
        self._lock = threading.Lock()
        self._closed = False
        #: Closed without waiting for anything.
        self._killed = False
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._inbox = Inbox(self._loop)
        self._deliveries = Deliveries(self._loop)
        self._finish = asyncio.Event()
        self._threads = (
            threading.Thread(target=self._run_loop, name="flashpool-loop", daemon=True),
            threading.Thread(target=self._deliveries.run, name="flashpool-delivery", daemon=True),
        )

    # Any thread.

    def start(self) -> None:
        """Start, and wait until calls can run.

        Raises:
            EnvironmentStartFailed: the zygote did not come up.
            PoolClosed: the interpreter is leaving.
        """
        interpreter_exit.engines.add(self)
        if interpreter_exit.exiting:
            interpreter_exit.engines.discard(self)
            raise PoolClosed("cannot schedule new futures after interpreter shutdown")
        for thread in self._threads:
            thread.start()
        self._started.wait()
        if self._failure is not None:
            self.join()
            raise self._failure

    def submit(self, task: Task, call: Call) -> None:
        """Have a call run. Its descriptors are ours now.

        Raises:
            PoolClosed: too late, or this is another process.
        """
        task.waits_for = call.spec
        try:
            self.check_is_ours()
            with self._lock:
                if self._closed:
                    raise PoolClosed(_CLOSED)
                self._tasks[task] = None
        except PoolClosed:
            close_all(call.fds)
            raise
        self.post(self._submit, task, call)

    def check_is_ours(self) -> None:
        """Raise `PoolClosed` in a fork of the program that made the pool."""
        if self.pid != os.getpid():
            raise PoolClosed(
                f"this pool belongs to process {self.pid}, and this is process {os.getpid()}, "
                "forked from it: make a Pool of its own here"
            )

    def post(self, function: Callable[..., None], *args: Any) -> None:
        """Have the loop thread call a function, in the order of posting."""
        if not self._inbox.post(function, *args):
            # Every task has heard that the loop ended.
            self._drop_unread()

    def _drop_unread(self) -> None:
        for function, args in self._inbox.unread():
            if function == self._submit:
                close_all(args[1].fds)
            elif function == self._answer_stats:
                args[0].put(PoolClosed("the pool is shut down: it has no statistics any more"))

    def cancel(self, task: Task, reason: str = "cancelled by its caller") -> None:
        """End a call, wherever it is."""
        self.post(self._cancel, task, reason)

    def credit(self, task: Task, items: int) -> None:
        """Let a stream go on."""
        self.post(self._credit, task, items)

    def release(self, instance: str) -> None:
        """Close an instance when its calls are over."""
        self.post(self._release, instance)

    def stats(self) -> Any:
        """The backend's statistics.

        Raises:
            PoolClosed: the loop has ended.
        """
        answer: SimpleQueue[Any] = SimpleQueue()
        self.post(self._answer_stats, answer)
        stats = answer.get()
        if isinstance(stats, BaseException):
            raise stats
        return stats

    @property
    def outstanding(self) -> int:
        """Calls that have not ended."""
        return len(self._tasks)

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self, cancel_queued: bool = False) -> None:
        """Take no more calls; leave when those taken have ended. Does not wait.

        A call that a free slot is waiting for counts as running, not as queued; one that
        waits for its environment is queued.
        """
        if self.pid != os.getpid():
            return
        with self._lock:
            self._closed = True
        if cancel_queued:
            tasks = list(self._tasks)
            queued = [task for task in tasks if task.is_queued()]
            ready = [task for task in queued if task.waits_for is None]
            free = max(0, self._slots - (len(tasks) - len(queued)))
            kept = set(ready[:free])
            for task in queued:
                if task not in kept:
                    task.cancel()
        self.post(self._close)

    def kill(self) -> None:
        """Close, and end every call now."""
        self._killed = True
        self.close()
        for task in list(self._tasks):
            task.cancel()

    def join(self) -> None:
        """Wait until all has ended; at once when called from a callback."""
        if self.pid != os.getpid() or threading.current_thread() in self._threads:
            # A callback runs on the delivery thread: it cannot wait for itself.
            return
        for thread in self._threads:
            thread.join()

    def disown(self) -> None:
        """In a fork of the program: touch nothing of the parent's, fail what waits here.

        Inherited descriptors stay open: closing the loop would change the parent's epoll,
        and no process of the pool takes an open end of them for its supervisor's life.
        """
        self._lock = threading.Lock()
        self._closed = True
        error = PoolClosed(f"the call was made in process {self.pid}, of which this one is a fork")
        tasks, self._tasks = self._tasks, {}
        for task in tasks:
            task.abandon(error)

    # Loop thread.

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        failure: BaseException = PoolClosed(_CLOSED)
        try:
            self._loop.run_until_complete(self._live())
        except BaseException as error:  # noqa: BLE001 - goes to every waiting caller
            failure = error
            if self._started.is_set():
                _log.exception("the pool's loop failed")
                failure = tracebacks.unexpected(error)
            self._failure = failure
        finally:
            self._end(failure)

    async def _live(self) -> None:
        await self._backend.start()
        try:
            await self._backend.wait_ready()
            self._started.set()
            await self._finish.wait()
            if not self._killed:
                # What calls left to be done at their exits is bounded by `exit_s`.
                await self._backend.drain(SECONDS_MAX)
        finally:
            await self._backend.stop()

    def _end(self, failure: BaseException) -> None:
        with self._lock:
            self._closed = True
        for task in list(self._tasks):
            self._drop(task, failure)
        self._deliveries.close()
        self._loop.close()
        self._drop_unread()
        self._started.set()
        interpreter_exit.engines.discard(self)

    def _submit(self, task: Task, call: Call) -> None:
        if task not in self._tasks or not task.is_queued():
            close_all(call.fds)
            self.ended(task)
            return
        try:
            task.call_id = self._backend.submit(call, task)
        except Exception as error:  # noqa: BLE001 - Overloaded and its like are the call's end
            close_all(call.fds)
            self._drop(task, tracebacks.refused(error))

    def _answer_stats(self, answer: SimpleQueue[Any]) -> None:
        try:
            answer.put(self._backend.stats())
        except Exception as error:  # noqa: BLE001 - raised where somebody waits for the answer
            answer.put(error)

    def _drop(self, task: Task, error: BaseException) -> None:
        self.deliver(task.fail, error)
        self.ended(task)

    def _cancel(self, task: Task, reason: str) -> None:
        if task.call_id is not None:
            self._backend.cancel(task.call_id, reason)
        elif task in self._tasks:
            # An interrupt (Ctrl-C) kept it from being posted.
            self.ended(task)

    def _credit(self, task: Task, items: int) -> None:
        if task.call_id is not None:
            self._backend.credit(task.call_id, items)

    def _release(self, instance: str) -> None:
        self._backend.release(instance, "its handle was closed or dropped")

    def ended(self, task: Task) -> None:
        """A call is over. Loop thread."""
        self._tasks.pop(task, None)
        if task.waits_for is not None:
            self.environment_ready(task)
        if self._closed and not self._tasks:
            self._finish.set()

    def narrates(self, task: Task) -> bool:
        """Whether it is this call that shows how its environment gets on. Loop thread.

        One of those that wait does: they share one terminal.
        """
        return task.waits_for is None or self._narrators.setdefault(task.waits_for, task) is task

    def environment_ready(self, task: Task) -> None:
        """A call does not wait for its environment any more. Loop thread."""
        spec, task.waits_for = task.waits_for, None
        if spec is not None and self._narrators.get(spec) is task:
            del self._narrators[spec]

    def _close(self) -> None:
        for task in list(self._tasks):
            task.closing()
        if not self._tasks:
            self._finish.set()

    def deliver(self, function: Callable[..., None], *args: Any) -> None:
        """Have the delivery thread call a function, with the rest of this turn's. Loop thread."""
        self._deliveries.deliver(function, *args)


def close_all(fds: tuple[int, ...] | list[int]) -> None:
    """Close descriptors that nobody will read."""
    for fd in fds:
        os.close(fd)
