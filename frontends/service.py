"""What all front-ends do with a request, whatever carried it.

    bytes --prepare--> Prepared --submit--> CallHandle ..outcome.. --answer--> Answer
            |                  |
            InvalidRequest,    Overloaded, PoolClosed
            EnvironmentError

`prepare` is where an environment is found; it alone may take time. The pool is reached
through `CallPool`, the few methods a front-end needs, so that it may live elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from flashpool.envs import Spec
from flashpool.pool.calls import Outcome, Provision
from flashpool.pool.environment_leases import EnvironmentLeases
from flashpool.pool.errors import Cancelled, FlashpoolError, Overloaded
from flashpool.pool.progress_notes import ProgressNotes

from . import logs, responses, schema
from .call_builder import BASE, Defaults, label_of, spec_of
from .call_handles import CallHandle, CallPool, Prepared, WatchedCallHandle, Watcher
from .responses import Answer

_log = logging.getLogger(__name__)

#: A caller who waited for so long is told why, whoever built what it waited for.
NOTEWORTHY_S: Final = 1.0


def _unheard(_line: str) -> None:
    """For those who do not want to hear of the progress."""


class Service:
    """Requests in, answers out, over one pool."""

    def __init__(
        self,
        pool: CallPool,
        environments: EnvironmentLeases,
        *,
        result_limit: int | None,
        concurrency: int = 1,
    ) -> None:
        self.pool = pool
        self._environments = environments
        self._defaults = Defaults(result_limit=result_limit, concurrency=concurrency)
        #: The response of a call that ended.
        self.answer: Callable[[Outcome], Answer] = partial(
            responses.of_outcome, result_limit=result_limit
        )
        self._starting: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
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
            _log.info("Ready")
        except FlashpoolError as error:
            self._failure = error
            _log.error("The base environment does not start: %s", error)

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
        """End the pool and everything in it, builds too; returns when all is gone, to everybody."""
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._stop(reason))
        await asyncio.shield(self._stopping)

    async def _stop(self, reason: str) -> None:
        if self._starting is not None:
            self._starting.cancel()
        await self.pool.stop(reason)
        await self._environments.close()

    def health(self) -> int:
        """200 ready, 204 starting, 503 neither: as a load balancer's probe reads it."""
        if self.pool.draining:
            return 503
        if self.pool.ready:
            self._failure = None  # a later start went well
            return 200
        return 503 if self._failure or self.pool.not_ready_reason else 204

    @property
    def not_ready_reason(self) -> str:
        """What is wrong, in words, when `health` is 503; or nothing."""
        if self._failure:
            return f"the base environment does not start: {self._failure}"
        return self.pool.not_ready_reason

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
        spec = spec_of(request)
        if spec is None:
            call = self._defaults.call_of(request, body, BASE, stream=stream)
            return Prepared(call, warnings=warnings)
        # Before its environment is made, which may take minutes.
        self.pool.check_gpus(request.gpus)
        provision, notes = await self._provide(spec, label_of(request), report)
        call = self._defaults.call_of(request, body, provision, stream=stream)
        return Prepared(call, notes, warnings)

    async def _provide(
        self, spec: Spec, label: str, report: Callable[[str], None]
    ) -> tuple[Provision, bytes]:
        """The environment, and what the call's output should tell of how it came."""
        notes = ProgressNotes()

        def told(line: str) -> None:
            notes.add(line)
            report(line)

        began = time.monotonic()
        try:
            provision = await self._resolve(spec, told)
        except FlashpoolError as error:
            error.told = notes.text()
            self._unprovided(label, error)
            raise
        except asyncio.CancelledError:
            self._unprovided(label, Cancelled("nobody waits for its environment any more"))
            raise
        # What is said while an environment is looked up quickly is nobody's news.
        news = provision.origin == "built" or time.monotonic() - began > NOTEWORTHY_S
        return provision, notes.text() if news else b""

    def _unprovided(self, label: str, error: FlashpoolError) -> None:
        self.pool.unprovided(label, error)
        logs.tell_unprovided(label, error)

    async def _resolve(self, spec: Spec, report: Callable[[str], None]) -> Provision:
        self.preparing += 1
        try:
            return await self._environments.resolve(spec, report)
        finally:
            self.preparing -= 1
            if not self.preparing:
                # Who waits for that runs in a later turn, after the call was submitted.
                self._all_prepared.set()

    def submit(self, prepared: Prepared, watcher: Watcher | None = None) -> CallHandle:
        """Hand a call to the pool."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        if watcher is None:
            pending = CallHandle(self.pool, future, prepared)
        else:
            pending = WatchedCallHandle(self.pool, future, prepared, watcher)
        pending.call_id = self.pool.submit(prepared.call, pending)
        return pending
