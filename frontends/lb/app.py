"""The load-balanced front-end, live mode: ``POST /execute``, ``GET /ping``, ``GET /health``.

An ASGI application that any server can host (``uvicorn module:app``); `server` hosts it with
deadlines, signals and a drain. Its routes are plain ASGI inside FastAPI: between socket and pool
there is no model, dependency or middleware.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Protocol

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Lifespan, Message, Receive, Scope, Send

from flashpool.frontends import responses
from flashpool.frontends.admin import Admin
from flashpool.frontends.call_handles import NO_TRACE
from flashpool.frontends.http_server.access_log import logged
from flashpool.frontends.responses import Answer
from flashpool.frontends.service import Service
from flashpool.frontends.settings.table import Settings
from flashpool.pool import call_ids
from flashpool.pool.errors import (
    FlashpoolError,
    PayloadTooLarge,
    Timeout,
    Unauthorized,
)

from .inflight_requests import Cut, InflightRequest, InflightRequests

#: Seconds that a client which sent too much may continue to send, so that it reads its answer:
#: closing at once would reset the connection first.
LINGER_S = 2.0
#: The path to which a client of SDK 2.0 sends the module of a live API.
SYNC = "/_runpod/sync"

_HEALTHY = b'{"status":"healthy"}'
_UNHEALTHY = b'{"status":"unhealthy"}'


class ClientGone(Exception):
    """The client disconnected before its request was complete, so no answer is sent."""


class Execute:
    """``POST /execute``."""

    def __init__(self, service: Service, settings: Settings) -> None:
        self._service = service
        self._token = settings.token.encode("ascii")
        self._body_limit = settings.max_body_mb * 1024 * 1024
        self._exchanges = InflightRequests(settings.receive_timeout_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        service = self._service
        exchange = self._exchanges.open(receive)
        request_id = b""
        try:
            headers = dict(scope["headers"])
            if b"x-request-id" in headers and call_ids.GIVEN_BYTES.fullmatch(
                headers[b"x-request-id"]
            ):
                request_id = headers[b"x-request-id"]
            self._authorize(headers)
            body = await self._read(headers, receive)
            exchange.received = True
            caller = NO_TRACE if service.tracing is None else _place_in_trace(headers)
            answer, request_id = await self._perform(exchange, body, request_id, caller)
            # A connection that stays open would bring the next request to a server that drains.
            await _respond(send, answer, request_id, close=service.pool.draining)
        except ClientGone:
            return
        except (PayloadTooLarge, Unauthorized) as error:
            await _respond_and_linger(receive, send, responses.of_error(error), _named(request_id))
        except FlashpoolError as error:
            await _respond(
                send, responses.of_error(error), _named(request_id), close=service.pool.draining
            )
        except asyncio.CancelledError:
            if exchange.cut is None:
                raise
            if exchange.cut is Cut.GONE:
                return
            late = Timeout("The request did not arrive within the limit", phase="receive")
            await _respond(send, responses.of_error(late, 408), _named(request_id), close=True)
        finally:
            self._exchanges.close(exchange)

    async def _perform(
        self,
        exchange: InflightRequest,
        body: bytes,
        request_id: bytes,
        caller: Mapping[str, str],
    ) -> tuple[Answer, bytes]:
        """Perform an authorized request; also return its id, which may be new."""
        service = self._service
        exchange.pending = call = service.submit(
            service.prepare(body, request_id=request_id.decode(), caller=caller)
        )
        if not request_id:
            request_id = b"%b-%d" % (call_ids.prefix.encode(), call.call_id)
        return service.answer(await call.outcome), request_id

    def _authorize(self, headers: dict[bytes, bytes]) -> None:
        if self._token:
            if b"authorization" not in headers:
                raise Unauthorized("A bearer token is required: Authorization: Bearer ...")
            scheme, _, given = headers[b"authorization"].partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._token):
                raise Unauthorized("The bearer token is wrong")
        elif b"origin" in headers:
            # Any web page can make its browser post to this machine.
            raise Unauthorized("Requests from web pages need a server with FLASHPOOL_TOKEN set")

    async def _read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > self._body_limit:
            raise self._too_large()
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            body: bytes = message.get("body", b"")
        else:
            body = await self._read_on(message, receive)
        if len(body) > self._body_limit:
            raise self._too_large()
        return body

    async def _read_on(self, message: Message, receive: Receive) -> bytes:
        chunks, size = [], 0
        while message["type"] == "http.request":
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self._body_limit:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(chunks)
            message = await receive()
        raise ClientGone

    def _too_large(self) -> PayloadTooLarge:
        limit = self._body_limit // (1024 * 1024)
        return PayloadTooLarge(
            f"The body is larger than {limit} MiB (FLASHPOOL_MAX_BODY_MB)", limit=self._body_limit
        )


class LiveRoutes(Protocol):
    """Routes that a generation of the client needs beside ``/execute``."""

    def running(self) -> AbstractAsyncContextManager[None]:
        """Run the routes' own tasks while the service runs."""

    async def sync(self, body: bytes) -> Answer:
        """Serve the source that a client sent to ``/_runpod/sync``."""

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answer a request to any other path; return False if no API is served."""


class Sync(Execute):
    """``POST /_runpod/sync``: brings code, as ``/execute`` does, and has the same guards."""

    def __init__(self, service: Service, settings: Settings, routes: LiveRoutes) -> None:
        super().__init__(service, settings)
        self._routes = routes

    async def _perform(
        self,
        exchange: InflightRequest,
        body: bytes,
        request_id: bytes,
        caller: Mapping[str, str],
    ) -> tuple[Answer, bytes]:
        return await self._routes.sync(body), request_id


class Health:
    """``GET /ping`` and ``/health``: 204 starting, 200 healthy, 503 failed or draining."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one probe."""
        status = self._service.health()
        body = {200: _HEALTHY, 204: b""}.get(status, _UNHEALTHY)
        if status == 503 and (reason := self._service.not_ready_reason):
            body = json.dumps({"status": "unhealthy", "reason": reason}).encode()
        await _respond(send, Answer(status, body), close=self._service.pool.draining)


def _place_in_trace(headers: dict[bytes, bytes]) -> Mapping[str, str]:
    """Return the caller's headers with the request's place in the caller's trace."""
    if b"traceparent" not in headers:
        return NO_TRACE
    return {
        "traceparent": headers[b"traceparent"].decode("latin-1"),
        "tracestate": headers.get(b"tracestate", b"").decode("latin-1"),
    }


def _named(request_id: bytes) -> bytes:
    """Return the request's id; a request that did not become a call gets a new number."""
    return request_id or call_ids.name_of(next(call_ids.numbers)).encode()


async def _respond(
    send: Send,
    answer: Answer,
    request_id: bytes = b"",
    *,
    close: bool = False,
    finish: bool = True,
) -> None:
    headers = [(b"content-type", b"application/json")]
    if request_id:
        headers.append((b"x-request-id", request_id))
    if answer.status != 204:
        headers.append((b"content-length", b"%d" % len(answer.body)))
    if answer.retry_after is not None:
        headers.append((b"retry-after", b"%d" % answer.retry_after))
    if answer.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": not finish})


async def _respond_and_linger(
    receive: Receive, send: Send, answer: Answer, request_id: bytes
) -> None:
    """Answer now, then discard input for a moment before the connection is closed."""
    await _respond(send, answer, request_id, close=True, finish=False)
    try:
        await asyncio.wait_for(_discard(receive), LINGER_S)
    except asyncio.TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _discard(receive: Receive) -> None:
    while (message := await receive())["type"] == "http.request":
        if not message.get("more_body", False):
            return


async def _not_served(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    hint = "This port serves POST /execute, GET /ping and GET /health"
    if request.scope["path"] == "/stats":
        hint = (
            "Stats are on the admin port: FLASHPOOL_ADMIN_PORT, 8001 when it is not set; "
            "the server prints the address when it starts"
        )
    detail = f"{error.detail}. {hint}."
    return JSONResponse({"detail": detail}, error.status_code, headers=error.headers)


class LiveApp(FastAPI):
    """FastAPI behind a table of routes that bypass its middleware and its router.

    Those layers cost as much as all other work for a request, and routes without parameters do not
    need them.
    """

    def __init__(
        self,
        direct: Mapping[tuple[str, str], ASGIApp],
        lifespan: Lifespan[FastAPI],
        routes: LiveRoutes | None,
        *,
        access_log: bool,
    ) -> None:
        # No generated docs: clients of this port know the contract.
        super().__init__(
            lifespan=lifespan,
            docs_url=None,
            redoc_url=None,
            openapi_url=None,
            exception_handlers={404: _not_served, 405: _not_served},
        )
        self._direct = direct
        self._routes = routes
        self._access_log = access_log
        for path in {path for _, path in direct}:
            methods = [method for method, other in direct if other == path]
            # The router gets only requests with other methods, and answers them with 405.
            self.router.routes.append(Route(path, direct[methods[0], path], methods=methods))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's request, or the lifespan."""
        if scope["type"] == "http":
            if self._access_log:
                send = logged(scope, send)
            route = self._direct.get((scope["method"], scope["path"]))
            if route is not None:
                return await route(scope, receive, send)
            if self._routes is not None and await self._routes.serve(scope, receive, send):
                return None
        return await super().__call__(scope, receive, send)


def create_app(
    service: Service,
    settings: Settings,
    admin: Admin | None = None,
    routes: LiveRoutes | None = None,
) -> FastAPI:
    """Return the application; its lifespan starts and stops the service and the admin listener."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            if admin is not None:
                await admin.start()
            async with routes.running() if routes is not None else nullcontext():
                yield
        finally:
            # Statistics remain available until the service has stopped.
            await service.stop()
            if admin is not None:
                await admin.stop()

    health = Health(service)
    direct: dict[tuple[str, str], ASGIApp] = {("POST", "/execute"): Execute(service, settings)}
    for path in ("/ping", "/health"):
        direct["GET", path] = direct["HEAD", path] = health
    if routes is not None:
        direct["POST", SYNC] = Sync(service, settings, routes)
    return LiveApp(direct, lifespan, routes, access_log=settings.access_log)
