"""`Pool`: a `concurrent.futures.Executor` that runs every call in a process of its own.

    Pool.submit -> pack (here, in the caller's thread) -> Engine -> Supervisor -> worker
    CallFuture  <- unpack (delivery thread)            <- Engine <- Supervisor <-'

A `Pool` owns its threads and processes; `Pool.options` gives `PoolView`s that share them
and differ in what their calls are allowed. Both submit through `PoolBase`.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from flashpool.pool import cross_version, pickling
from flashpool.pool._child.serialization import payload
from flashpool.pool.backend import Backend
from flashpool.pool.calls import Call, CallLimits, Codec, InstanceRequest
from flashpool.pool.config import PoolConfig, usable_cores
from flashpool.pool.errors import PoolClosed
from flashpool.pool.limits import WORKERS_MAX, is_whole
from flashpool.pool.supervisor.supervisor import Supervisor

from . import parallel_map, pool_parameters
from .call_options import CallOptions
from .engine import Engine, close_all
from .functions import Function, is_generator_function
from .futures import CallFuture, CallSink, failed
from .remote_instances import InstanceMethod, RemoteInstance
from .tasks import Task

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from flashpool.envs import EnvSettings, Spec
    from flashpool.pool.config import PoolKeywords

    from .call_options import CallKeywords

T = TypeVar("T")

#: Calls on their way that may hold a descriptor; beyond, their buffers travel in the message.
MAX_CALLS_WITH_MEMORY: Final = 256


class PoolBase(Executor):
    """What a pool and its views have in common."""

    _options: CallOptions
    #: What the calls' environment is made of; None: the base environment.
    _spec: Spec | None
    _limits: CallLimits
    #: The variables that its calls set.
    _touches: frozenset[str]

    def _use(self, options: CallOptions) -> None:
        self._options = options
        self._spec = options.environment()
        self._limits = options.limits()
        self._touches = options.touches()

    def _pool(self) -> Pool:
        raise NotImplementedError

    def options(self, **changes: Unpack[CallKeywords]) -> PoolView:
        """A view of this pool whose calls have other options; see `CallOptions`.

        Raises:
            InvalidRequest: an option is unknown, or its value makes no sense.
        """
        return PoolView(self._pool(), self._options.merged(changes))

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> CallFuture[T]:
        """Run ``fn(*args, **kwargs)`` in a process of its own.

        Arguments are pickled here and now; when that fails, the future has the error.
        The result of a generator function is a `RemoteIterator`.
        """
        engine = self._pool()._engine_to_submit()
        try:
            function = Function(fn, self._dumps(), out_of_band=engine.shares_descriptors)
            call = self._pack(engine, function, (args, kwargs), payload.ONE)
        except Exception as error:  # noqa: BLE001 - any class's own __reduce__
            return failed(error)
        return self._start(engine, call, stream=is_generator_function(fn))

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Like the built-in ``map``, in parallel; results in order.

        Each call has a process of its own; with ``chunksize`` n, n calls share one, which
        makes small calls cheap. All are submitted at once, or ``buffersize`` chunks ahead
        of the reader. A failure, the timeout or closing the iterator cancels the rest.
        """
        parallel_map.check_sizes(chunksize, buffersize)
        engine = self._pool()._engine_to_submit()
        arguments = zip(*iterables)  # noqa: B905 - stops at the shortest, as the built-in does
        try:
            out_of_band = engine.shares_descriptors
            function = Function(fn, self._dumps(), out_of_band=out_of_band, reused=True)
        except Exception as error:  # noqa: BLE001 - any class's own __reduce__
            return parallel_map.results(
                iter([parallel_map.Failed(error)]), None, timeout, chunked=False
            )
        kind = payload.EACH if chunksize > 1 else payload.ONE
        parts: Iterable[Any] = ((one, {}) for one in arguments)
        if chunksize > 1:
            parts = parallel_map.chunks(arguments, chunksize)
        gate = parallel_map.ResultWaiter()
        calls = (self._submit_part(engine, gate, function, part, kind) for part in parts)
        if buffersize is None and function.parcel[1]:
            # Each waiting call holds a descriptor of the function's memory.
            buffersize = MAX_CALLS_WITH_MEMORY // 2
        return parallel_map.results(calls, buffersize, timeout, chunked=chunksize > 1)

    def instance(
        self,
        cls: Callable[..., Any],
        /,
        *args: Any,
        max_concurrency: int | None = None,
        rebuild: bool = False,
        **options: Unpack[CallKeywords],
    ) -> RemoteInstance:
        """An object of that class in a worker of its own; see `RemoteInstance`.

        ``cls(*args)`` is called there with the first call of a method; for keywords pass a
        `functools.partial`. ``options`` are those of `options`, and hold for all its calls.

        Raises:
            InvalidRequest: an option is unknown, or its value makes no sense.
        """
        concurrency = self._pool()._config.instance_concurrency
        if max_concurrency is not None:
            concurrency = pool_parameters.concurrency(max_concurrency)
        submitter = self.options(**options) if options else self
        return RemoteInstance(submitter, cls, args, max_concurrency=concurrency, rebuild=rebuild)

    def _submit_method(
        self, method: InstanceMethod, arguments: Any, want: InstanceRequest, *, stream: bool
    ) -> CallFuture[Any]:
        engine = self._pool()._engine_to_submit()
        try:
            call = self._pack(engine, method, arguments, payload.ONE)
        except Exception as error:  # noqa: BLE001 - any class's own __reduce__
            return failed(error)
        return self._start(engine, replace(call, want=want), stream=stream)

    def _submit_part(
        self,
        engine: Engine,
        gate: parallel_map.ResultWaiter,
        function: Function,
        arguments: Any,
        kind: bytes,
    ) -> parallel_map.AnyCall:
        try:
            call = self._pack(engine, function, arguments, kind)
        except Exception as error:  # noqa: BLE001 - any class's own __reduce__
            return parallel_map.Failed(error)
        task = parallel_map.MapCall(engine, gate, show_output=self._pool().show_output)
        self._submit_to(engine, task, call)
        return task

    def _dumps(self) -> pickling.Dumps:
        """How to pickle for the Python that the calls run in."""
        base_python = self._pool()._config.base_python
        return pickling.dumps_for(cross_version.wanted(self._options.python_version, base_python))

    def _pack(
        self, engine: Engine, function: Function | InstanceMethod, arguments: Any, kind: bytes
    ) -> Call:
        options = self._options
        parcel = payload.pack(
            arguments,
            function.dumps,
            out_of_band=engine.shares_descriptors and engine.outstanding < MAX_CALLS_WITH_MEMORY,
        )
        try:
            body, fds = payload.pack_call(function.take(), parcel, kind)
        except OSError:
            close_all(parcel[1])
            raise
        return Call(
            codec=Codec.PICKLE,
            body=body,
            fds=tuple(fds),
            label=function.label,
            function_key=(function.key, self._touches),
            spec=self._spec,
            limits=self._limits,
            gpus=options.gpus,
            touches=self._touches | function.touches,
            seed=options.seed,
            env=options.env,
            idempotent=options.idempotent,
            scratch=options.scratch,
        )

    def _start(self, engine: Engine, call: Call, *, stream: bool) -> CallFuture[Any]:
        future: CallFuture[Any] = CallFuture()
        sink = CallSink(engine, future, stream=stream, show_output=self._pool().show_output)
        self._submit_to(engine, sink, replace(call, stream=True) if stream else call)
        return future

    def _submit_to(self, engine: Engine, task: Task, call: Call) -> None:
        try:
            engine.submit(task, call)
        except BaseException:
            # Refused, or interrupted (Ctrl-C) half-way: nobody will read the result.
            task.cancel()
            raise


class Pool(PoolBase):
    """Runs calls, each in a process of its own, several at a time.

    ``max_workers`` calls run at once (default: one per usable core). ``timeout`` seconds
    and ``memory_mb`` are the defaults for calls that do not bring their own through
    `options`, as are ``dependencies``, ``python_version`` and ``system_dependencies``, what
    the environment of calls is made of. What calls print shows on this program's standard output, unless
    ``show_output`` is False; every future has it as ``output`` either way. Everything
    else that can be set is in `PoolConfig`, and given as a keyword.

    Nothing starts before the first call. ``with Pool() as pool:`` waits at the end for
    all calls; a pool that is dropped, or left open when the interpreter exits, finishes
    what was submitted and leaves nothing behind.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        timeout: float | None = None,
        memory_mb: int | None = None,
        dependencies: Iterable[str] = (),
        python_version: str | None = None,
        system_dependencies: Iterable[str] = (),
        environments: EnvSettings | None = None,
        show_output: bool = True,
        **keywords: Unpack[PoolKeywords],
    ) -> None:
        if is_whole(max_workers) and max_workers <= 0:
            raise ValueError(f"max_workers must be greater than 0; got {max_workers!r}")
        options = {
            "timeout": timeout,
            "memory_mb": memory_mb,
            "dependencies": dependencies,
            "python_version": python_version,
            "system_dependencies": system_dependencies,
        }
        own = {"max_workers": max_workers, "show_output": show_output}
        settings = pool_parameters.check(
            {**options, **own, "environments": environments, **keywords}
        )
        for name in pool_parameters.OWN:
            del settings[name]
        self._use(CallOptions().merged(options))
        settings.setdefault("queue_limit", None)
        # A program's calls are not all for GPUs: those that are say so.
        settings.setdefault("gpus_per_call", 0)
        # Whoever holds an instance says when it may go.
        settings.setdefault("instances", WORKERS_MAX)
        settings.setdefault("instance_idle_s", None)
        settings.setdefault("worker_env", dict(os.environ))
        settings.setdefault("extra_path", pickling.program_path())
        self._config = PoolConfig(
            slots=max_workers or usable_cores(),
            call_timeout_s=timeout,
            memory_mb=memory_mb,
            **settings,
        )
        self._environments = environments
        self._engine: Engine | None = None
        self._closed = False
        #: Held while the engine is started. Reentrant: a signal handler may shut us down
        #: in the middle of that, in the same thread.
        self._lock = threading.RLock()
        _pools.add(self)
        self.show_output = show_output

    def _pool(self) -> Pool:
        return self

    def _engine_to_submit(self) -> Engine:
        """The engine, started by whoever comes first.

        Raises:
            EnvironmentStartFailed: the pool's interpreter does not come up.
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

    def _make_backend(self) -> Backend:
        """What runs its calls."""
        return Supervisor(self._config, self._environments)

    def _start_engine(self) -> Engine:
        self._check_open()
        engine = Engine(self._make_backend(), self._config.slots)
        engine.start()
        # The engine's threads keep it alive; when the pool goes, it finishes and goes.
        weakref.finalize(self, engine.close).atexit = False
        self._engine = engine
        try:
            self._check_open()
        except PoolClosed:
            # `shutdown` came meanwhile, and may have found no engine to close.
            engine.close()
            raise
        return engine

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and leave when those submitted have ended.

        Called from a future's callback it never waits: the callback is part of the work.
        """
        self._closed = True
        if wait:
            # Another thread's first `submit` may be starting the engine. Without waiting
            # it is that thread that closes it: it looks at `_closed` after `_engine` is set.
            self._lock.acquire()
            self._lock.release()
        engine = self._engine
        if engine is None:
            return
        engine.close(cancel_futures)
        if wait:
            engine.join()

    def _release(self, instance: str) -> None:
        """Nobody here has a use for this instance any more."""
        if self._engine is not None:
            self._engine.release(instance)

    def stats(self) -> Any:
        """The statistics as of now; see `flashpool.pool.stats`."""
        return self._engine_to_submit().stats()

    def __repr__(self) -> str:
        engine = self._engine
        state = "closed" if self._closed else "not started" if engine is None else "open"
        calls = engine.outstanding if engine is not None else 0
        return f"<Pool {state}, {self._config.slots} at once, {calls} outstanding>"


#: Pools of this process, for its forks.
_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _free_locks() -> None:
    """In a fork: a thread that is not here may have held them, starting an engine."""
    for pool in list(_pools):
        pool._lock = threading.RLock()


os.register_at_fork(after_in_child=_free_locks)


class PoolView(PoolBase):
    """A pool with other options for its calls. Its `shutdown` is the pool's."""

    def __init__(self, pool: Pool, options: CallOptions) -> None:
        self._shared = pool
        self._use(options)

    def _pool(self) -> Pool:
        return self._shared

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Shut the shared pool down."""
        self._shared.shutdown(wait, cancel_futures=cancel_futures)

    def __repr__(self) -> str:
        return f"<view of {self._shared!r}: {self._options!r}>"


__all__ = ["Pool", "PoolView"]
