"""What all front-ends do with a request, whatever carried it.

    bytes --prepare--> Prepared --submit--> Pending ..outcome.. --answer--> Answer
            |                  |
            InvalidRequest,    Overloaded, PoolClosed
            EnvironmentError

`prepare` is where an environment is found; it alone may take time. The pool is reached
through `CallPool`, the few methods a front-end needs, so that it may live elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from flashpool.envs import Spec
from flashpool.pool.calls import Call, Codec, Limits, Outcome, Provision, Sink
from flashpool.pool.errors import FlashpoolError, Overloaded
from flashpool.pool.resident_states import Want
from flashpool.pool.sources import SOURCE_LIMIT

from . import answers, logs, schema
from .answers import Answer
from .environments import Environments

log = logging.getLogger(__name__)

#: Lines told of the making of one environment, and the length of one.
NOTES: Final = 200
NOTE_LIMIT: Final = 500
_BASE: Final = Provision()
#: A caller who waited for so long is told why, whoever built what it waited for.
NOTEWORTHY_S: Final = 1.0


def _unheard(_line: str) -> None:
    """For those who do not want to hear of the progress."""


class CallPool(Protocol):
    """The pool as front-ends see it; `Supervisor` is one."""

    @property
    def ready(self) -> bool:
        """Whether calls start at once."""

    @property
    def draining(self) -> bool:
        """Whether new calls are refused."""

    @property
    def unfit(self) -> str:
        """Why no call can be served here for now, although all is up; or nothing."""

    @property
    def slots(self) -> int:
        """Calls of the usual kind that can run at once: on slots, or on GPUs."""

    @property
    def free_slots(self) -> int:
        """Those that could begin now."""

    def check_gpus(self, asked: int | None) -> None:
        """Refuse what asks for more GPUs than there are."""

    async def start(self) -> None:
        """Begin to start."""

    async def wait_ready(self) -> None:
        """Until `ready`, or raise."""

    def submit(self, call: Call, sink: Sink) -> int:
        """Take a call, or raise `Overloaded` or `PoolClosed`."""

    def cancel(self, call_id: int, reason: str = "cancelled") -> None:
        """End a call."""

    def credit(self, call_id: int, items: int) -> None:
        """A streaming call may send so many items more."""

    async def drain(self, limit_s: float, first: Awaitable[object] | None = None) -> bool:
        """Refuse new calls once ``first`` is done, wait for the running ones."""

    async def stop(self, reason: str = ...) -> None:
        """End everything; calls still there are told the reason."""

    def stats(self) -> Any:
        """Counts and lists, as dataclasses."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A call whose environment is there."""

    call: Call
    #: What was told while its environment was made; it stands before the call's output.
    notes: bytes = b""
    #: What is odd about the request; told with its outcome.
    warnings: tuple[str, ...] = ()


class Watcher(Protocol):
    """Who hears of a call before it ends; on the pool's loop, and must not block."""

    def started(self) -> None:
        """A worker has it."""

    def output(self, chunk: bytes) -> None:
        """It wrote that to descriptor 1 or 2."""

    def item(self, body: bytes) -> None:
        """It yielded, and waits when a window of items has not been credited."""


class Pending:
    """A submitted call: the sink of its outcome."""

    __slots__ = ("_pool", "_prepared", "call_id", "outcome")

    wants_output = False

    def __init__(
        self, pool: CallPool, outcome: asyncio.Future[Outcome], prepared: Prepared
    ) -> None:
        self._pool = pool
        self._prepared = prepared
        self.outcome = outcome
        self.call_id = 0

    def cancel(self, reason: str) -> None:
        """Have the call ended; its outcome still comes."""
        if not self.outcome.done():
            self._pool.cancel(self.call_id, reason)

    def output(self, chunk: bytes) -> None:
        """Not asked for."""

    def item(self, body: bytes, fds: tuple[int, ...]) -> None:
        """Not asked for."""

    def done(self, outcome: Outcome) -> None:
        """The end; who waited may have left."""
        notes, warnings = self._prepared.notes, self._prepared.warnings
        if notes or warnings:
            outcome = replace(outcome, output=notes + outcome.output, warnings=warnings)
        logs.tell_end(self._prepared.call.label, outcome)
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class Watched(Pending):
    """One that somebody watches meanwhile."""

    __slots__ = ("_watcher", "started")

    wants_output = True

    def __init__(
        self,
        pool: CallPool,
        outcome: asyncio.Future[Outcome],
        prepared: Prepared,
        watcher: Watcher,
    ) -> None:
        super().__init__(pool, outcome, prepared)
        self._watcher = watcher
        self.started = watcher.started

    def output(self, chunk: bytes) -> None:
        """Pass it on."""
        self._watcher.output(chunk)

    def item(self, body: bytes, fds: tuple[int, ...]) -> None:
        """Pass it on; items of flash calls are text, without descriptors."""
        self._watcher.item(body)


class Service:
    """Requests in, answers out, over one pool."""

    def __init__(
        self,
        pool: CallPool,
        environments: Environments,
        *,
        result_limit: int | None,
        concurrency: int = 1,
    ) -> None:
        self.pool = pool
        self._environments = environments
        self._result_limit = result_limit
        self._usual_limits = Limits(result_bytes=result_limit)
        #: Calls of an instance's async methods that run together, where a request does not say.
        self._concurrency = concurrency
        self._starting: asyncio.Task[None] | None = None
        self._failure: FlashpoolError | None = None
        #: Requests whose environments are being found or made.
        self.preparing = 0
        self._all_prepared = asyncio.Event()

    async def start(self) -> None:
        """Start the pool; returns before it is ready."""
        await self.pool.start()
        self._starting = asyncio.ensure_future(self._watch_start())

    async def _watch_start(self) -> None:
        try:
            await self.pool.wait_ready()
            log.info("Ready")
        except FlashpoolError as error:
            self._failure = error
            log.error("The base environment does not start: %s", error)  # noqa: TRY400 - told in full

    async def drain(self, limit_s: float) -> bool:
        """Take no new requests; True when all that were accepted have ended in time.

        Those whose environments are being made are among them: their calls are still taken.
        """
        return await self.pool.drain(limit_s, self._until_prepared())

    async def _until_prepared(self) -> None:
        while self.preparing:
            self._all_prepared.clear()
            await self._all_prepared.wait()

    async def stop(self, reason: str = "the server stops") -> None:
        """End the pool and everything in it, builds too."""
        if self._starting is not None:
            self._starting.cancel()
        await self.pool.stop(reason)
        await self._environments.close()

    def health(self) -> int:
        """200 ready, 204 starting, 503 neither: as a load balancer's probe reads it."""
        if self.pool.draining:
            return 503
        if self.pool.ready:
            return 200
        return 503 if self._failure or self.pool.unfit else 204

    @property
    def ailment(self) -> str:
        """What is wrong, in words, when `health` is 503; or nothing."""
        if self._failure:
            return f"the base environment does not start: {self._failure}"
        return self.pool.unfit

    async def prepare(
        self, body: bytes, report: Callable[[str], None] = _unheard, *, stream: bool = False
    ) -> Prepared:
        """The call a request asks for.

        ``report`` hears what is told while its environment is made. With ``stream``, a generator
        function's items go to whoever watches the call, one by one.
        """
        if self.pool.draining:
            raise Overloaded("The server is draining; it takes no new calls", retry_after_s=1)
        request, body, warnings = schema.decode(body)
        spec = _spec(request)
        # Before its environment is made, which may take minutes.
        self.pool.check_gpus(request.gpus)
        notes: deque[str] = deque(maxlen=NOTES)

        def told(line: str) -> None:
            notes.append(line)
            report(line)

        began = time.monotonic()
        try:
            provision = await self._resolve(spec, told) if spec else _BASE
        except FlashpoolError as error:
            error.told = _joined(notes)
            logs.tell_unprovided(_label(request), error)
            raise
        waited = time.monotonic() - began
        key = _function_key(request)
        call = Call(
            codec=Codec.FLASH,
            body=body,
            label=_label(request),
            function_key=key,
            source=_source(request),
            provision=provision,
            want=self._want(request, (key, provision.environment, request.gpus)),
            limits=self._limits(request),
            gpus=request.gpus,
            env=request.env or {},
            stream=stream,
            idempotent=bool(request.idempotent),
        )
        # What is said while an environment is looked up quickly is nobody's news.
        news = provision.origin == "built" or waited > NOTEWORTHY_S
        return Prepared(call, _joined(notes) if news else b"", warnings)

    def _limits(self, request: schema.FunctionRequest) -> Limits:
        if request.timeout_s is None and request.memory_mb is None:
            return self._usual_limits
        return Limits(
            run_s=request.timeout_s,
            memory_mb=request.memory_mb,
            result_bytes=self._result_limit,
        )

    def _want(self, request: schema.FunctionRequest, code: object) -> Want | None:
        """The instance a method is called of; without one, or in a process of its own, None."""
        if request.execution_type != "class" or request.isolation == "call":
            return None
        name = request.class_name or ""
        return Want(
            instance=request.instance_id or f"{name}_{secrets.token_hex(8)}",
            class_name=name,
            code=code,
            arguments=_arguments_key(request),
            method=request.method_name or "__call__",
            concurrency=request.max_concurrency or self._concurrency,
            anew=bool(request.create_new_instance) and request.instance_id is not None,
            must_exist=bool(request.instance_must_exist),
            unnamed=request.instance_id is None,
        )

    async def _resolve(self, spec: Spec, report: Callable[[str], None]) -> Provision:
        self.preparing += 1
        try:
            return await self._environments.resolve(spec, report)
        finally:
            self.preparing -= 1
            if not self.preparing:
                # Who waits for that runs in a later turn, after the call was submitted.
                self._all_prepared.set()

    def submit(self, prepared: Prepared, watcher: Watcher | None = None) -> Pending:
        """Hand a call to the pool."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        if watcher is None:
            pending = Pending(self.pool, future, prepared)
        else:
            pending = Watched(self.pool, future, prepared, watcher)
        pending.call_id = self.pool.submit(prepared.call, pending)
        return pending

    def answer(self, outcome: Outcome) -> Answer:
        """The response of a call that ended."""
        return answers.of_outcome(outcome, self._result_limit)


def _label(request: schema.FunctionRequest) -> str:
    return request.function_name or request.class_name or "call"


def _spec(request: schema.FunctionRequest) -> Spec | None:
    if not (request.dependencies or request.system_dependencies or request.python_version):
        return None
    return Spec(
        requirements=tuple(request.dependencies or ()),
        system_packages=tuple(request.system_dependencies or ()),
        python_version=request.python_version,
        refresh=bool(request.refresh),
    )


def _joined(notes: Iterable[str]) -> bytes:
    text = "".join(f"{line[:NOTE_LIMIT]}\n" for line in notes)
    return text.encode("utf-8", "backslashreplace")


def _source(request: schema.FunctionRequest) -> bytes:
    """What is worth compiling ahead of the next call; of a class, its instance is kept."""
    code = request.function_code
    if request.execution_type != "function" or len(memoryview(code)) > SOURCE_LIMIT:
        return b""
    return bytes(code)


def _arguments_key(request: schema.FunctionRequest) -> int:
    """Equal for requests that make an instance with the same arguments and variables."""
    env = tuple(sorted(request.env.items())) if request.env else ()
    return hash((bytes(request.constructor_args), bytes(request.constructor_kwargs), env))


def _function_key(request: schema.FunctionRequest) -> int:
    # A collision costs a preload that does not fit, nothing else: the hash will do.
    return hash(
        (
            request.function_name or request.class_name,
            bytes(request.function_code),
            bytes(request.class_code),
            bytes(request.modules),
        )
    )
