"""``@app.task`` of SDK 2.0: the server of a pod that runs one function, and is then terminated.

    GET  /ping      {"ready": true}                        needs no token; 503 until calls can run
    POST /submit    a FunctionRequest and "timeout"        409 while a task runs
    GET  /result    NONE, RUNNING, or DONE with the response
    POST /timeout   {"timeout": seconds}                   counts from now
    POST /execute   as /submit, but answers with the response

All routes but ``/ping`` need ``Authorization: Bearer $RUNPOD_TASK_TOKEN``. If no
task runs and no request arrives for RUNPOD_TASK_IDLE_TIMEOUT, the pod terminates itself.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from starlette.types import Message, Receive, Scope, Send

from flashpool.frontends import responses
from flashpool.frontends.admin import Admin
from flashpool.frontends.service import Service
from flashpool.pool.errors import FlashpoolError, PayloadTooLarge

from .task_slot import Busy, TaskSlot, acknowledgement, read_timeout, refusal

__all__ = ["TaskApp"]

_log = logging.getLogger(__name__)
_AGAIN_S: Final = 60.0
_Route = Callable[[bytes], Awaitable["tuple[int, bytes]"]]


class TaskApp:
    """The ASGI application."""

    def __init__(
        self,
        service: Service,
        admin: Admin,
        *,
        token: str,
        most_bytes: int,
        idle_s: float | None = None,
        end_pod: Callable[[], None] | None = None,
    ) -> None:
        """``end_pod`` blocks; called after ``idle_s`` seconds without a task or a request."""
        self._service = service
        self._admin = admin
        self._token = token.encode()
        self._most_bytes = most_bytes
        self._idle_s = idle_s
        self._end_pod = end_pod
        self._slot = TaskSlot(service)
        self._heard_at = time.monotonic()
        self._routes: dict[tuple[str, str], _Route] = {
            ("POST", "/submit"): self._submit,
            ("POST", "/execute"): self._execute,
            ("POST", "/timeout"): self._timeout,
            ("GET", "/result"): self._result,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, or the lifespan."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            self._heard_at = time.monotonic()
            await _respond(send, *await self._answer(scope, receive))

    # Life.

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with self._running():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        await self._service.start()
        watching = asyncio.ensure_future(self._watch())
        try:
            await self._admin.start()
            yield
        finally:
            watching.cancel()
            await self._service.stop()
            await self._admin.stop()

    async def _watch(self) -> None:
        """Terminate the pod when it has been idle for too long."""
        if self._end_pod is None or self._idle_s is None:
            return
        while True:
            await asyncio.sleep(max(self._left_s(self._idle_s), 0.0))
            if self._slot.is_running:
                await self._slot.wait()
                continue
            if self._left_s(self._idle_s) > 0:
                continue
            _log.warning("No request for %g s, and no task runs: terminating the pod", self._idle_s)
            try:
                await asyncio.to_thread(self._end_pod)
            except Exception as error:  # noqa: BLE001 - tried again later
                _log.error("The pod cannot be terminated: %s", error)
            await asyncio.sleep(_AGAIN_S)

    def _left_s(self, idle_s: float) -> float:
        return max(self._heard_at, self._slot.idle_since) + idle_s - time.monotonic()

    # Requests.

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, bytes]:
        method, path = scope["method"], scope["path"]
        if path == "/ping" and method in ("GET", "HEAD"):
            return self._ping()
        if not self._is_allowed(dict(scope["headers"])):
            return 401, b'{"error":"a bearer token is required, and this is not it"}'
        route = self._routes.get((method, path))
        if route is None:
            return 404, b'{"error":"not found"}'
        try:
            return await route(await self._read(receive))
        except Busy:
            return 409, b'{"error":"a task runs already"}'
        except FlashpoolError as error:
            return responses.STATUS.get(type(error).__name__, 500), refusal(error)

    def _ping(self) -> tuple[int, bytes]:
        if self._service.health() == 200:
            return 200, b'{"ready":true}'
        told = {"ready": False, "reason": self._service.not_ready_reason or "starting"}
        return 503, json.dumps(told).encode()

    def _is_allowed(self, headers: dict[bytes, bytes]) -> bool:
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        return (
            bool(self._token)
            and scheme.lower() == b"bearer"
            and hmac.compare_digest(given.strip(), self._token)
        )

    async def _read(self, receive: Receive) -> bytes:
        parts, size = [], 0
        while (message := await receive())["type"] == "http.request":
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._most_bytes:
                raise PayloadTooLarge(
                    f"The body is larger than {self._most_bytes} bytes (FLASHPOOL_MAX_BODY_MB)",
                    limit=self._most_bytes,
                )
            if not message.get("more_body", False):
                break
        return b"".join(parts)

    async def _submit(self, body: bytes) -> tuple[int, bytes]:
        return 200, acknowledgement(self._slot.submit(body), status="RUNNING")

    async def _execute(self, body: bytes) -> tuple[int, bytes]:
        self._slot.submit(body)
        return 200, await self._slot.wait()

    async def _timeout(self, body: bytes) -> tuple[int, bytes]:
        limit_s = read_timeout(body)
        self._slot.limit(limit_s)
        return 200, acknowledgement(limit_s)

    async def _result(self, _body: bytes) -> tuple[int, bytes]:
        return 200, self._slot.result()


async def _respond(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    start: Message = {"type": "http.response.start", "status": status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": body})
