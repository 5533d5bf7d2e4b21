"""A pool's life: its engine, from the first call until all calls have ended; early stops.

first call -> Engine.start ... shutdown             -> calls finish        -> stopped
                           ... the block is left    -> see `stopping`      -> stopped
                           ... terminate_workers    -> calls are stopped   -> stopped
"""

from __future__ import annotations

import os
import threading
import weakref
from concurrent.futures import Executor
from types import TracebackType

from flashpool.pool.backend import Backend
from flashpool.pool.config import PoolConfig
from flashpool.pool.errors import PoolClosed

from . import stopping
from .engine import Engine


class PoolLife(Executor):
    """The life of a pool: begins with the first call, and ends with `shutdown` or earlier."""

    _config: PoolConfig

    def __init__(self, on_error: str) -> None:
        self._on_error = on_error
        self._engine: Engine | None = None
        self._closed = False
        #: Held while the engine starts. Reentrant: meanwhile a signal handler may call `shutdown`
        #: in the same thread.
        self._lock = threading.RLock()
        _pools.add(self)

    def _make_backend(self) -> Backend:
        """Create the backend that runs this pool's calls."""
        raise NotImplementedError

    def _engine_to_submit(self) -> Engine:
        """Return the engine; the first call starts it.

        Raises:
            EnvironmentStartFailed: the pool's interpreter does not start.
            PoolClosed: the pool is shut down, or this is a fork of its process.
        """
        engine = self._engine
        if engine is None:
            with self._lock:
                engine = self._engine or self._start_engine()
        engine.check_is_ours()
        self._check_open()
        return engine

    def _check_open(self) -> None:
        if self._closed:
            raise PoolClosed("cannot schedule new futures after shutdown")

    def _start_engine(self) -> Engine:
        self._check_open()
        engine = Engine(self._make_backend(), self._config.slots, self._config.grace_s)
        engine.start()
        # The engine's threads keep it alive; when the pool is garbage-collected, the engine
        # finishes its calls and stops.
        weakref.finalize(self, engine.close).atexit = False
        self._engine = engine
        try:
            self._check_open()
        except PoolClosed:
            # `shutdown` was called meanwhile, and may have found no engine to close.
            engine.close()
            raise
        return engine

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls, and stop when the submitted ones have ended.

        Called from a future's callback it never waits: the callback is part of the work.
        """
        self._closed = True
        try:
            self._finish(wait, cancel_futures)
        except (KeyboardInterrupt, SystemExit) as error:
            # The thread that waits for calls here must not wait any longer.
            self._end_now(f"{type(error).__name__} came while a Pool waited for its calls")
            raise

    def _finish(self, wait: bool, cancel_futures: bool) -> None:
        if wait:
            # Another thread's first `submit` may be starting the engine. If we do not wait, that
            # thread closes the engine: it checks `_closed` after it has set `_engine`.
            self._lock.acquire()
            self._lock.release()
        engine = self._engine
        if engine is None:
            return
        engine.close(cancel_futures)
        if wait:
            engine.join()

    def _end_now(self, what: str) -> None:
        self._closed = True
        engine = self._engine
        if engine is not None:
            stopping.end_now([engine], what)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.shutdown(wait=True)
        elif self._on_error == stopping.TERMINATE or stopping.at_once(error):
            self._end_now(f"{type(error).__name__} left the block of a Pool")
        else:
            self._let_finish(error)

    def _let_finish(self, error: BaseException) -> None:
        """Cancel calls that have not begun, and wait for those that run."""
        self._closed = True
        engine = self._engine
        if engine is not None:
            stopping.say_what_finishes(error, engine.close(cancel_queued=True))
        self.shutdown(wait=True)

    def cancel(self, call_id: int) -> bool:
        """Cancel the call with this id, queued or running; see `CallFuture.call_id`.

        The call's future is cancelled, and the process tree of a running call is killed. Return
        False if the call does not exist or has ended.
        """
        engine = self._engine
        task = engine.find(call_id) if engine is not None else None
        return task is not None and task.cancel()

    def terminate_workers(self) -> None:
        """Accept no more calls, cancel those that wait, and send SIGTERM to those that run.

        Running calls fail as `Cancelled`. Processes that have not exited after ``grace_s`` are
        killed. Like `ProcessPoolExecutor` of Python 3.14, this does not wait.
        """
        self._force_shutdown("terminate_workers", None)

    def kill_workers(self) -> None:
        """Do the same with SIGKILL, without a grace period for running calls."""
        self._force_shutdown("kill_workers", 0.0)

    def _force_shutdown(self, name: str, grace_s: float | None) -> None:
        self._closed = True
        engine = self._engine
        if engine is not None:
            engine.end(f"{name} was called", grace_s=grace_s)


#: Pools of this process, of which forks renew the locks.
_pools: weakref.WeakSet[PoolLife] = weakref.WeakSet()


def _free_locks() -> None:
    """In a fork: renew locks that a thread held which exists only in the parent."""
    for pool in list(_pools):
        pool._lock = threading.RLock()


os.register_at_fork(after_in_child=_free_locks)
