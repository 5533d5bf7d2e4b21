"""Threads that wait for one disk, separate for each disk; waits for them are limited.

    run(work) --> the volume answers? --> [ queue ] --> a few threads --> its result
                      '-- no: `DiskHangs`        '-- the volume hangs meanwhile: `DiskHangs`

A volume that hangs blocks a system call indefinitely. Such calls would soon occupy all threads that
the process shares, and other work, such as measuring memory, would stop. These threads are daemons,
which no exit waits for.

Each task knows its disk (`chosen`): functions that the task runs in threads use that disk, however
deep the call.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar, cast

from .disk_hangs import DiskHangs
from .volume_watch import VolumeWatch

__all__ = ["DiskThreads", "disk_in_use", "run_in_thread"]

T = TypeVar("T")
P = ParamSpec("P")

#: Threads per disk: operations that hang occupy at most these.
_THREADS: Final = 16


class DiskThreads:
    """The threads of one disk."""

    def __init__(
        self, name: str, *, watch: VolumeWatch | None = None, threads: int = _THREADS
    ) -> None:
        """``watch``: the watch over the volume; None for a disk that cannot hang."""
        self.watch = watch
        self._name = name
        self._most = threads
        self._lock = threading.Lock()
        self._queue: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._threads = 0
        self._waiting: dict[asyncio.Future[Any], asyncio.AbstractEventLoop] = {}
        self._abandoned = False
        if watch is not None:
            watch.on_hang.append(self._give_up)

    def __repr__(self) -> str:
        return f"<DiskThreads {self._name}: {self._threads} threads, {len(self._waiting)} wait>"

    @property
    def hangs(self) -> bool:
        """Return whether the disk is known not to answer."""
        return self.watch is not None and self.watch.hangs

    @contextmanager
    def chosen(self) -> Iterator[None]:
        """Make `run_in_thread` use this disk, in this block and in tasks that begin in it."""
        token = _chosen.set(self)
        try:
            yield
        finally:
            _chosen.reset(token)

    async def run(self, work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """Run a function and return its result; a cancelled caller leaves the function running.

        Raises:
            DiskHangs: the disk does not answer; the function may still run later.
        """
        with self._awaited() as done:
            asked = self.submit(partial(self._checked, partial(work, *args, **named)))
            asked.add_done_callback(partial(_tell, done.get_loop(), done))
            try:
                return cast("T", await done)
            finally:
                asked.cancel()

    async def unless_it_hangs(self, work: Coroutine[Any, Any, T]) -> T:
        """Await work that waits for the disk elsewhere, such as in another process.

        Cancel the work if the disk hangs.

        Raises:
            DiskHangs: the disk does not answer.
        """
        task = asyncio.ensure_future(work)
        try:
            with self._awaited() as hanging:
                await asyncio.wait({task, hanging}, return_when=asyncio.FIRST_COMPLETED)
                return hanging.result() if hanging.done() and not task.done() else await task
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    @contextmanager
    def _awaited(self) -> Iterator[asyncio.Future[Any]]:
        """Provide a future that fails when the disk hangs; probe the disk until then."""
        with self.watch.waiting() if self.watch is not None else nullcontext():
            loop = asyncio.get_running_loop()
            done: asyncio.Future[Any] = loop.create_future()
            with self._lock:
                self._waiting[done] = loop
            try:
                # Checked only now: the disk may have begun to hang before this future could be
                # notified.
                if self._abandoned or self.hangs:
                    raise self._problem()
                yield done
            finally:
                with self._lock:
                    del self._waiting[done]

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Queue a function for one of the threads."""
        future: Future[T] = Future()
        with self._lock:
            self._queue.append((future, work))
            more = self._threads < self._most
            self._threads += more
        if more:
            self._start_thread()
        return future

    def abandon(self) -> None:
        """Fail all waits from now on, because the process exits."""
        self._abandoned = True
        self._give_up()

    def _give_up(self) -> None:
        with self._lock:
            waiting = list(self._waiting.items())
        for done, loop in waiting:
            _in_loop(loop, partial(_fail, done, self._problem()))

    def _problem(self) -> DiskHangs:
        if self._abandoned:
            return DiskHangs(f"{self._name}: nobody waits for it any more")
        return DiskHangs(f"{self._name} does not answer")

    def _checked(self, work: Callable[[], T]) -> T:
        if self.watch is not None:
            self.watch.check()
        return work()

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name=f"flashpool-{self._name}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            with self._lock:
                self._threads -= 1
                alone = not self._threads
            if alone:  # no other thread would run the function
                raise

    def _work(self) -> None:
        """Run queued functions until none is left."""
        while True:
            with self._lock:
                if not self._queue:
                    self._threads -= 1
                    return
                future, work = self._queue.popleft()
            if future.set_running_or_notify_cancel():
                _do(future, work)
            del future, work  # release what they refer to before waiting for the next function


def _do(future: Future[Any], work: Callable[[], Any]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
        future.set_exception(error)


def _tell(loop: asyncio.AbstractEventLoop, done: asyncio.Future[Any], asked: Future[Any]) -> None:
    if not asked.cancelled():
        _in_loop(loop, partial(_settle, done, asked))


def _in_loop(loop: asyncio.AbstractEventLoop, tell: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(tell)
    except RuntimeError:
        # The loop is closed: nothing waits for the result.
        if not loop.is_closed():
            raise


def _settle(done: asyncio.Future[Any], asked: Future[Any]) -> None:
    if done.done():
        return
    error = asked.exception()
    if error is None:
        done.set_result(asked.result())
    else:
        done.set_exception(error)


def _fail(done: asyncio.Future[Any], problem: DiskHangs) -> None:
    if not done.done():
        done.set_exception(problem)


#: Threads for functions that choose no disk: they use local disks.
_ELSEWHERE: Final = DiskThreads("disk")
_chosen: ContextVar[DiskThreads] = ContextVar("disk", default=_ELSEWHERE)


async def run_in_thread(work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """Run in a thread of the disk that this task works on; see `DiskThreads.run`."""
    return await _chosen.get().run(work, *args, **named)


def disk_in_use() -> DiskThreads:
    """Return the disk that this task works on."""
    return _chosen.get()
