"""Keeps the requests of failed calls, in the background: no call waits for a volume."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from flashpool.frontends.logs import line_format
from flashpool.frontends.logs.calls import extra_of
from flashpool.pool import call_ids
from flashpool.pool.backend import Backend
from flashpool.pool.calls import BASE_ENVIRONMENT, Call, Codec, Outcome
from flashpool.pool.errors import FlashpoolError

from .kept import KeptRequest, KeptRequests, without_values

_log = logging.getLogger(__name__)

#: Most requests that are being written at once; further requests are not kept.
_AT_ONCE: Final = 16
#: Seconds that a server which stops waits for these writes.
_END_S: Final = 2.0
_ERROR: Final = 4000


class FailureKeeper:
    """Keeps the failed requests of one server."""

    def __init__(self, kept: KeptRequests, pool: Backend) -> None:
        self._kept = kept
        self._pool = pool
        self._tasks: set[asyncio.Task[None]] = set()
        #: Requests are written one at a time, and room is counted before each.
        self._writing = asyncio.Lock()

    def failed(self, call: Call, call_id: int, outcome: Outcome) -> None:
        """Keep the request of a failed call, unless its caller cancelled it."""
        if outcome.error_type == "Cancelled" or call.codec is not Codec.FLASH:
            return
        name = call_ids.name_of(call_id)
        if len(self._tasks) >= _AT_ONCE:
            _log.warning("The request of call %s is not kept: the volume is too slow", name)
            return
        task = asyncio.ensure_future(self._keep(call, name, outcome))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep(self, call: Call, name: str, outcome: Outcome) -> None:
        try:
            digest = outcome.receipt.environment
            lock = await self._lock_of(digest)
            async with self._writing:
                kept = await asyncio.to_thread(self._write, call, name, outcome, lock)
        except (OSError, ValueError, FlashpoolError) as error:
            _log.warning("The request of call %s cannot be kept: %s", name, error)
            return
        if kept:
            extra = extra_of(call, name)
            _log.info("Kept its request: flashpool replay %s", name, extra=extra)
        else:
            _log.info("The request of call %s is larger than FLASHPOOL_KEEP_FAILED_MB", name)

    async def _lock_of(self, digest: str) -> tuple[str, ...]:
        watching = self._pool.watching
        if watching is None or digest in ("", BASE_ENVIRONMENT):
            return ()
        return await watching.lock_of(digest)

    def _write(self, call: Call, name: str, outcome: Outcome, lock: tuple[str, ...]) -> bool:
        body, names = without_values(call.body)
        limits = {
            "run_s": call.limits.run_s,
            "memory_mb": call.limits.memory_mb,
            "result_bytes": call.limits.result_bytes,
        }
        kept = KeptRequest(
            id=name,
            request_id=call.request_id,
            label=call.label,
            at=time.time(),
            pod=line_format.pod(),
            error_type=outcome.error_type or "",
            error=(outcome.error or "")[:_ERROR],
            receipt=outcome.receipt.as_dict(),
            environment=outcome.receipt.environment,
            lock=lock,
            env=names,
            limits={key: value for key, value in limits.items() if value is not None},
        )
        return self._kept.keep(kept, body)

    async def close(self) -> None:
        """Wait a moment for writes in progress."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=_END_S)
