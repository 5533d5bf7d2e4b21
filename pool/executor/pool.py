"""`Pool`: a `concurrent.futures.Executor` that runs every call in a process of its own.

    Pool.submit -> pack (here, in the caller's thread) -> Engine -> Supervisor -> worker
    CallFuture  <- unpack (delivery thread)            <- Engine <- Supervisor <-'

A `Pool` owns its threads and processes; `Pool.options` returns `PoolView`s that share them and
differ in the options of their calls. Both submit through `PoolBase`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from flashpool.pool import cross_version, pickling
from flashpool.pool._child.serialization import payload
from flashpool.pool.backend import Backend
from flashpool.pool.calls import Call, CallLimits, Codec, InstanceRequest
from flashpool.pool.config import PoolConfig, usable_cores
from flashpool.pool.limits import WORKERS_MAX, is_whole
from flashpool.pool.supervisor.supervisor import Supervisor

from . import interrupts, parallel_map, pool_parameters, shown_output, stopping
from .call_options import CallOptions
from .engine import Engine, close_all
from .functions import Function, is_generator_function
from .futures import CallFuture, CallSink, failed
from .pool_life import PoolLife
from .remote_instances import InstanceMethod, RemoteInstance
from .tasks import Task

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from flashpool.envs import EnvSettings, Spec
    from flashpool.pool.config import PoolKeywords

    from .call_options import CallKeywords

T = TypeVar("T")

#: Most unfinished calls that may hold a descriptor; buffers of further calls travel in the message.
MAX_CALLS_WITH_MEMORY: Final = 256


class PoolBase(Executor):
    """The methods that a pool and its views share."""

    _options: CallOptions
    #: The packages of the calls' environment; None: the base environment.
    _spec: Spec | None
    _limits: CallLimits
    #: What the calls touch through their options.
    _touches: frozenset[str]

    def _use(self, options: CallOptions) -> None:
        self._options = options
        self._spec = options.environment()
        self._limits = options.limits()
        self._touches = options.touches()

    def _pool(self) -> Pool:
        raise NotImplementedError

    def options(self, **changes: Unpack[CallKeywords]) -> PoolView:
        """Return a view of this pool whose calls have other options; see `CallOptions`.

        Raises:
            InvalidRequest: an option is unknown, or its value is not valid.
        """
        return PoolView(self._pool(), self._options.merged(changes))

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> CallFuture[T]:
        """Run ``fn(*args, **kwargs)`` in a process of its own.

        Arguments are pickled at once, in this thread; if that fails, the future has the error.
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
        """Call ``fn`` like the built-in ``map``, in parallel; yield results in order.

        Each call has a process of its own. With ``chunksize`` n, n calls share a process, which
        makes small calls cheap. All calls are submitted at once, or ``buffersize`` chunks ahead of
        the reader. A failure, the timeout or closing the iterator cancels the remaining calls.
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
        """Create an object of a class in a worker of its own; see `RemoteInstance`.

        The first method call makes the worker call ``cls(*args)``; for keyword arguments pass a
        `functools.partial`. ``options`` are those of `options`, for all calls of the instance.

        Raises:
            InvalidRequest: an option is unknown, or its value is not valid.
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
        """Return the pickling function for the Python that the calls run in."""
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
        except KeyboardInterrupt:
            # An interrupt came half-way: the call may run, and no code would read its result.
            interrupts.cancel((task,))
            raise
        except BaseException:
            # The engine refused the call.
            task.cancel()
            raise


class Pool(PoolLife, PoolBase):
    """Runs calls, each in a process of its own, several at a time.

    ``max_workers`` calls run at once (default: one per usable core). ``timeout`` (seconds),
    ``memory_mb``, ``dependencies``, ``python_version`` and ``system_dependencies`` are defaults for
    calls that do not set their own through `options`. The output of calls is shown on this
    program's standard output, unless ``show_output`` is False; in both cases each future has it as
    ``output``. All other settings are fields of `PoolConfig`, given as keywords.

    Nothing starts before the first call. ``with Pool() as pool:`` waits at its end for all calls.
    If an exception leaves the block, calls that wait are cancelled, and calls that run finish
    (``on_error="finish"``) or are stopped (``"terminate"``). Ctrl-C and `SystemExit` stop them at
    once, see `stopping`. A pool that is no longer referenced, or is still open when the interpreter
    exits, finishes the submitted calls and leaves no process behind.
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
        on_error: str = stopping.FINISH,
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
        own = {"max_workers": max_workers, "show_output": show_output, "on_error": on_error}
        settings = pool_parameters.check(
            {**options, **own, "environments": environments, **keywords}
        )
        for name in pool_parameters.OWN:
            del settings[name]
        self._use(CallOptions().merged(options))
        settings.setdefault("queue_limit", None)
        # Not all calls of a program use GPUs; those that do say so.
        settings.setdefault("gpus_per_call", 0)
        # The holder of an instance decides when it is closed.
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
        self.show_output = show_output
        PoolLife.__init__(self, on_error)

    def _pool(self) -> Pool:
        return self

    def _make_backend(self) -> Backend:
        """Create the backend that runs this pool's calls."""
        # If output is not shown, or both streams are one file, workers need no second pipe.
        split = self.show_output and shown_output.streams_differ()
        return Supervisor(replace(self._config, split_output=split), self._environments)

    def _release(self, instance: str) -> None:
        """Close an instance that no code here refers to any more."""
        if self._engine is not None:
            self._engine.release(instance)

    def stats(self) -> Any:
        """Return the current statistics; see `flashpool.pool.stats`."""
        return self._engine_to_submit().stats()

    def __repr__(self) -> str:
        engine = self._engine
        state = "closed" if self._closed else "not started" if engine is None else "open"
        calls = engine.outstanding if engine is not None else 0
        return f"<Pool {state}, {self._config.slots} at once, {calls} outstanding>"


class PoolView(PoolBase):
    """A pool with other options for its calls; `shutdown` shuts the pool itself down."""

    def __init__(self, pool: Pool, options: CallOptions) -> None:
        self._shared = pool
        self._use(options)

    def _pool(self) -> Pool:
        return self._shared

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Shut the shared pool down."""
        self._shared.shutdown(wait, cancel_futures=cancel_futures)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._shared.__exit__(kind, error, traceback)

    def cancel(self, call_id: int) -> bool:
        """Cancel a call; see `Pool.cancel`."""
        return self._shared.cancel(call_id)

    def terminate_workers(self) -> None:
        """Stop the shared pool's calls; see `Pool.terminate_workers`."""
        self._shared.terminate_workers()

    def kill_workers(self) -> None:
        """Stop the shared pool's calls; see `Pool.kill_workers`."""
        self._shared.kill_workers()

    def __repr__(self) -> str:
        return f"<view of {self._shared!r}: {self._options!r}>"


__all__ = ["Pool", "PoolView"]
