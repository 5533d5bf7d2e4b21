"""A pool's two threads: a loop with the backend on it, and the delivery of results.

    any thread              loop thread                    delivery thread
    ----------              -----------                    ---------------
    submit, cancel -------> Backend.submit, cancel
                            Sink.done -------------------> unpickle, set the future,
                                                           and so run callbacks

User code never runs on the loop thread: a callback that blocks or a slow unpickling delays other
results, but never the backend.

The threads hold the engine, and the engine never holds the `Pool`: when a pool is no longer
referenced, its engine is closed, finishes its calls and then stops.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from flashpool.pool.backend import Backend
from flashpool.pool.calls import Call
from flashpool.pool.errors import PoolClosed
from flashpool.pool.limits import SECONDS_MAX

from . import interpreter_exit, tracebacks
from .attachments import Attachments
from .stopping import OpenCalls
from .tasks import Task
from .thread_handoff import Deliveries, Inbox

if TYPE_CHECKING:
    from flashpool.envs import Spec

_log = logging.getLogger(__name__)

_CLOSED = "cannot schedule new futures after shutdown"


class Engine:
    """Owns the threads of one `Pool`, and the backend that runs its calls."""

    def __init__(self, backend: Backend, slots: int, grace_s: float) -> None:
        """``slots``: calls that run at once; ``grace_s``: from SIGTERM to SIGKILL."""
        self.pid = os.getpid()
        self._backend = backend
        self._slots = slots
        self.grace_s = grace_s
        #: Whether descriptors reach the workers.
        self.shares_descriptors = backend.shares_descriptors
        #: For each environment that calls wait for, the call that shows its progress.
        self._narrators: dict[Spec, Task] = {}
        #: Calls that have not ended; a dict, because it keeps the order of submission.
        self._tasks: dict[Task, None] = {}
        #: Guards `_closed` against submissions: none comes after the last look at `_tasks`.
        self._lock = threading.Lock()
        self._closed = False
        #: Whether the engine was closed without waiting for its calls.
        self._cut_short = False
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        #: Other services on the loop, for as long as the backend lives.
        self.attachments = Attachments(self._loop, backend)
        self._inbox = Inbox(self._loop)
        self._deliveries = Deliveries(self._loop)
        self._finish = asyncio.Event()
        #: Why, and with what grace period, the backend is stopped before its calls have finished.
        self._stop_reason: str | None = None
        self._stop_grace_s: float | None = None
        #: Tasks that stop a backend which is stopping already, to shorten the grace period.
        self._hastening: list[asyncio.Task[None]] = []
        self._threads = (
            threading.Thread(target=self._run_loop, name="flashpool-loop", daemon=True),
            threading.Thread(target=self._deliveries.run, name="flashpool-delivery", daemon=True),
        )

    # Any thread.

    def start(self) -> None:
        """Start, and wait until calls can run.

        Raises:
            EnvironmentStartFailed: the zygote did not start.
            PoolClosed: the interpreter is exiting.
        """
        interpreter_exit.engines.add(self)
        if interpreter_exit.exiting:
            interpreter_exit.engines.discard(self)
            raise PoolClosed("cannot schedule new futures after interpreter shutdown")
        try:
            for thread in self._threads:
                thread.start()
            self._started.wait()
        except BaseException:
            # Interrupted (Ctrl-C): no code will have a reference to this engine.
            self.end("its start was interrupted", grace_s=0.0)
            raise
        if self._failure is not None:
            self.join()
            raise self._failure

    def submit(self, task: Task, call: Call) -> None:
        """Submit a call to the loop. The engine owns the call's descriptors now.

        Raises:
            PoolClosed: the engine is closed, or this is another process.
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
        """Raise `PoolClosed` in a fork of the process that made the pool."""
        if self.pid != os.getpid():
            raise PoolClosed(
                f"this pool belongs to process {self.pid}, of which process {os.getpid()} is a "
                "fork: create a new Pool in the fork"
            )

    def post(self, function: Callable[..., None], *args: Any) -> None:
        """Have the loop thread call a function, in the order of posting."""
        if not self._inbox.post(function, *args):
            # Every task was notified that the loop ended.
            self._drop_unread()

    def _drop_unread(self) -> None:
        for function, args in self._inbox.unread():
            if function == self._submit:
                close_all(args[1].fds)
            elif function == self._answer:
                args[0].put(PoolClosed("the pool is shut down: it knows of no calls any more"))

    def cancel(self, task: Task, reason: str = "cancelled by its caller") -> None:
        """Cancel a call, wherever it is."""
        self.post(self._cancel, task, reason)

    def credit(self, task: Task, items: int) -> None:
        """Allow a stream to send ``items`` more items."""
        self.post(self._credit, task, items)

    def release(self, instance: str) -> None:
        """Close an instance when its calls have finished."""
        self.post(self._release, instance)

    def ask(self, question: Callable[[], Any]) -> Any:
        """Call a function on the loop's thread, after everything posted before; return its result.

        Raises:
            PoolClosed: the loop has ended.
        """
        answer: SimpleQueue[Any] = SimpleQueue()
        self.post(self._answer, answer, question)
        found = answer.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def stats(self) -> Any:
        """Return the backend's statistics.

        Raises:
            PoolClosed: the loop has ended.
        """
        return self.ask(self._backend.stats)

    def find(self, call_id: int) -> Task | None:
        """Return the call with this id, unless it has ended."""

        def look() -> Task | None:
            return next((task for task in list(self._tasks) if task.call_id == call_id), None)

        try:
            task: Task | None = self.ask(look)
        except PoolClosed:
            return None
        return task

    @property
    def outstanding(self) -> int:
        """The number of calls that have not ended."""
        return len(self._tasks)

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self, cancel_queued: bool = False) -> OpenCalls:
        """Accept no more calls; stop when those accepted have ended. Does not wait.

        A call for which a slot is free counts as running, not as queued; a call that waits for its
        environment is queued.
        """
        if self.pid != os.getpid():
            return OpenCalls()
        with self._lock:
            self._closed = True
        found = OpenCalls(running=len(self._tasks))
        if cancel_queued:
            found = self._cancel_queued(self._slots)
        self.post(self._close)
        return found

    def _cancel_queued(self, slots: int) -> OpenCalls:
        """Cancel the calls that neither run nor find one of ``slots`` slots free."""
        tasks = [task for task in list(self._tasks) if not task.is_over()]
        queued = [task for task in tasks if task.is_queued()]
        ready = [task for task in queued if task.waits_for is None]
        free = max(0, slots - (len(tasks) - len(queued)))
        kept = set(ready[:free])
        for task in queued:
            if task not in kept:
                task.cancel()
        cancelled = len(queued) - len(kept)
        return OpenCalls(running=len(tasks) - cancelled, cancelled=cancelled)

    def end(self, reason: str, *, grace_s: float | None = None) -> OpenCalls:
        """Accept no more calls, cancel those that have not begun, and stop those that run.

        Does not wait. Calls that run fail as `Cancelled` with the given reason; their processes
        have ``grace_s`` to exit (None: the pool's). A second call can only shorten that time.
        """
        if self.pid != os.getpid():
            return OpenCalls()
        with self._lock:
            self._closed = True
        self._cut_short = True
        found = self._cancel_queued(0)
        self.post(self._end_calls, reason, grace_s)
        return found

    def join(self, timeout: float | None = None) -> bool:
        """Wait until all calls have ended and the threads have stopped; return False on timeout.

        Returns at once when called from a callback.
        """
        if self.pid != os.getpid() or threading.current_thread() in self._threads:
            # A callback runs on the delivery thread: it cannot wait for itself.
            return True
        deadline = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def disown(self) -> None:
        """In a fork of the program: leave the parent's resources alone, and fail the calls here.

        Inherited descriptors stay open: closing the loop would change the parent's epoll, and no
        process of the pool takes an open copy of them as a sign that its supervisor lives.
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
            if not self._cut_short:
                # Only `exit_s` limits how long exits of calls may take.
                await self._backend.drain(SECONDS_MAX)
        finally:
            reason = self._stop_reason or "the pool is shut down"
            await self._backend.stop(reason, grace_s=self._stop_grace_s)
            await asyncio.gather(*self._hastening)
            await self.attachments.stop_all()

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
        except Exception as error:  # noqa: BLE001 - the call fails with it, as with Overloaded
            close_all(call.fds)
            self._drop(task, tracebacks.refused(error))

    def _answer(self, answer: SimpleQueue[Any], question: Callable[[], Any]) -> None:
        try:
            answer.put(question())
        except Exception as error:  # noqa: BLE001 - raised in the thread that waits for the answer
            answer.put(error)

    def _end_calls(self, reason: str, grace_s: float | None) -> None:
        begun = self._finish.is_set()
        self._finish.set()
        if not begun:
            self._stop_reason, self._stop_grace_s = reason, grace_s
        if begun or not self._started.is_set():
            # The backend is stopping with another grace period, or waits for its zygote; this ends
            # both.
            stopping = self._backend.stop(reason, grace_s=grace_s)
            self._hastening.append(self._loop.create_task(stopping))

    def _drop(self, task: Task, error: BaseException) -> None:
        self.deliver(task.fail, error)
        self.ended(task)

    def _cancel(self, task: Task, reason: str) -> None:
        if task.call_id is not None:
            self._backend.cancel(task.call_id, reason)
        elif task in self._tasks:
            # An interrupt (Ctrl-C) came before the call was posted.
            self.ended(task)

    def _credit(self, task: Task, items: int) -> None:
        if task.call_id is not None:
            self._backend.credit(task.call_id, items)

    def _release(self, instance: str) -> None:
        self._backend.release(instance, "its handle was closed or dropped")

    def ended(self, task: Task) -> None:
        """Forget a call that has ended. Loop thread."""
        self._tasks.pop(task, None)
        if task.waits_for is not None:
            self.environment_ready(task)
        if self._closed and not self._tasks:
            self._finish.set()

    def narrates(self, task: Task) -> bool:
        """Return whether this call shows the progress of its environment. Loop thread.

        Only one of the calls that wait for an environment does, because they share one terminal.
        """
        return task.waits_for is None or self._narrators.setdefault(task.waits_for, task) is task

    def environment_ready(self, task: Task) -> None:
        """Note that a call no longer waits for its environment. Loop thread."""
        spec, task.waits_for = task.waits_for, None
        if spec is not None and self._narrators.get(spec) is task:
            del self._narrators[spec]

    def _close(self) -> None:
        for task in list(self._tasks):
            task.closing()
        if not self._tasks:
            self._finish.set()

    def deliver(self, function: Callable[..., None], *args: Any) -> None:
        """Have the delivery thread call a function, with others of this turn. Loop thread."""
        self._deliveries.deliver(function, *args)


def close_all(fds: tuple[int, ...] | list[int]) -> None:
    """Close descriptors that no code will read."""
    for fd in fds:
        os.close(fd)
