"""The front-end of a deployed app: an ASGI application that passes requests on to its workers.

    GET, HEAD /ping     answered here, even if the app has such a route
    /execute            404, in every spelling, if the client generated the app
    all else            --> AppService --> a worker's application

Each answer has an ``X-Request-Id``: the app's own, else the client's, else a new one. The proxy
never runs, imports or reads code of the app. Headers, their order and statuses pass unchanged, both
ways. The proxy itself answers requests that the app does not answer:

    raised 500 | crashed 502 | lost, refused, not loaded, draining 503 | late 504 | too large 413
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from starlette.types import Message, Receive, Scope, Send

from flashpool.frontends.http_server.access_log import logged
from flashpool.frontends.settings.route_patterns import WEBSOCKET
from flashpool.pool import call_ids
from flashpool.pool._child import app_messages
from flashpool.pool.apps import AppEnd, AppRequest, AppService, AppState, EndKind

from .answers import INTERNAL, deny, detail_body, id_of, respond, sentence, unhealthy_body
from .client_watch import ClientWatch, WatchedClient
from .proxied_request import ProxiedRequest
from .proxied_socket import ProxiedSocket
from .route_counts import CUT, LEFT, RouteCounts, end_of

_EXECUTE: Final = ("execute",)
_REQUEST_ID: Final = b"x-request-id"
_TIMEOUTS: Final = (b"flashpool-timeout", b"x-flashpool-timeout-s")
#: Methods of requests that a client may repeat if no answer arrives.
_SAFE: Final = ("GET", "HEAD", "OPTIONS")
_STATUS: Final = {
    EndKind.RAISED: 500,
    EndKind.CUT: 500,
    EndKind.CRASHED: 502,
    EndKind.LOST: 503,
    EndKind.LATE: 504,
    EndKind.REFUSED: 503,
    EndKind.FAILED: 503,
}
_HEALTHY: Final = b'{"status":"healthy"}'


class _TurnedAwayError(Exception):
    """The request does not reach the app; contains the answer for the client."""

    def __init__(self, status: int, detail: str, error_type: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.error_type = error_type


class _RequestHead(NamedTuple):
    """The parts of a request's headers that matter here, and the headers for the app."""

    headers: list[tuple[bytes, bytes]]
    #: Length of the body in bytes, from ``Content-Length``.
    length: int
    #: Seconds that the client waits.
    wait_s: float
    #: Whether the client waits for ``100 Continue`` before it sends the body.
    expects: bool
    #: The id that the client sent, if it is valid.
    given_id: bytes


class Serving(Protocol):
    """The app that is served now; implemented by `deployment.AppDeployment`."""

    @property
    def service(self) -> AppService | None:
        """Return the service that gets the next request; None before an app exists."""

    @property
    def problem(self) -> str:
        """Return why no app can be served, or an empty string."""

    @property
    def generated(self) -> bool:
        """Return whether ``/execute`` is hidden from the app."""


class AppProxy:
    """Passes requests to one app."""

    def __init__(
        self,
        serving: Serving,
        *,
        max_body_mb: int,
        draining: Callable[[], bool],
        access_log: bool = False,
        routes: RouteCounts | None = None,
    ) -> None:
        self._serving = serving
        self._max_body_mb = max_body_mb
        self._body_limit = max_body_mb * 1024 * 1024
        self._draining = draining
        self._clients = ClientWatch()
        self._access_log = access_log
        self._routes = routes or RouteCounts()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request or one WebSocket."""
        path = scope["path"]
        if scope["type"] == "websocket":
            began = time.monotonic()
            end = await self._serve_socket(scope, receive, send)
            self._routes.ended(WEBSOCKET, path, end, time.monotonic() - began)
            return
        if self._access_log:
            send = logged(scope, send)
        if path == "/ping" and scope["method"] in ("GET", "HEAD"):
            await self._ping(send)
            return
        began, end = time.monotonic(), LEFT
        try:
            head = self._read_head(scope)
            end = await self._pass_on(self._open(), scope, head, receive, send)
        except _TurnedAwayError as refused:
            end = end_of(refused.status)
            again = 1 if refused.status == 503 else None
            closes = refused.status in (413, 503)
            body = detail_body(refused.detail, refused.error_type)
            await respond(
                send,
                refused.status,
                body,
                retry_after=again,
                close=closes,
                request_id=id_of(scope),
            )
        finally:
            self._routes.ended(scope["method"], path, end, time.monotonic() - began)

    # Health.

    def health(self) -> tuple[int, bytes]:
        """Return status and body of ``/ping``: 204 while loading, 200, or 503 with a reason."""
        if self._draining():
            return 503, unhealthy_body("the server is draining")
        service = self._serving.service
        state = AppState.LOADING if service is None else service.state
        if state is AppState.SERVED:
            return 200, _HEALTHY
        problem = self._serving.problem if service is None else service.failure
        return (503, unhealthy_body(problem)) if problem else (204, b"")

    async def _ping(self, send: Send) -> None:
        status, body = self.health()
        await respond(send, status, body, close=self._draining())

    # Requests to the app.

    def _open(self) -> AppService:
        """Return the service for the request."""
        if self._draining():
            raise _TurnedAwayError(503, "The server is draining", "Overloaded")
        service = self._serving.service
        if service is None:
            why = self._serving.problem or "the app is not loaded yet"
            raise _TurnedAwayError(503, why, "AppNotLoaded")
        return service

    def _read_head(self, scope: Scope) -> _RequestHead:
        path: str = scope["path"]
        if "execute" in path and self._serving.generated and _segments(path) == _EXECUTE:
            raise _TurnedAwayError(404, "Not Found", "")
        given: list[tuple[bytes, bytes]] = scope["headers"]
        length, wait_s, expects, ours = 0, math.inf, False, False
        given_id = b""
        for name, value in given:
            if name == b"content-length":
                length = int(value[:20]) if value.isdigit() else 0
            elif name in _TIMEOUTS:
                wait_s, ours = _seconds(name, value), True
            elif name == b"expect":
                expects = value.lower() == b"100-continue"
            elif name == _REQUEST_ID:
                given_id = value
        if length > self._body_limit:
            raise self._too_large()
        headers = [one for one in given if one[0] not in _TIMEOUTS] if ours else given
        if given_id and not call_ids.GIVEN_BYTES.fullmatch(given_id):
            given_id = b""
        return _RequestHead(headers, length, wait_s, expects, given_id)

    def _too_large(self) -> _TurnedAwayError:
        return _TurnedAwayError(
            413,
            f"The body is larger than {self._max_body_mb} MiB (FLASHPOOL_MAX_BODY_MB)",
            "PayloadTooLarge",
        )

    async def _pass_on(
        self, service: AppService, scope: Scope, head: _RequestHead, receive: Receive, send: Send
    ) -> str:
        """Pass the request on, and its answer back; return the outcome for `RouteCounts`."""
        first: Message = {}
        more = True
        if not head.expects:
            first = await receive()
            if first["type"] == "http.disconnect":
                return LEFT
            more = first.get("more_body", False)
        body = first.get("body", b"")
        if len(body) > self._body_limit:
            raise self._too_large()
        loop = asyncio.get_running_loop()
        request = ProxiedRequest(loop, service, head.given_id)
        window = 0 if head.expects else app_messages.WINDOW
        begin, rest = body[: app_messages.PIECE], body[app_messages.PIECE :]
        request.body_room = window - len(begin)
        request.number = number = service.request(
            AppRequest(
                fields=_fields(scope, head.headers),
                body=begin,
                more=more or bool(rest),
                on_demand=head.expects,
            ),
            request,
        )
        client = WatchedClient(
            receive, lambda: self._gone(request), lambda: self._waits_no_longer(request, head)
        )
        if head.wait_s < math.inf:
            client.deadline = loop.time() + head.wait_s
        self._clients.add(client)
        if more or rest:
            client.watched = True
            client.watcher = asyncio.ensure_future(
                self._pump(request, _after(rest, more, receive), self._body_limit - len(begin))
            )
        try:
            end = await request.answer(send, self._draining())
            if end is not None:
                return end_of(await self._tell(scope, end, send, request.id))
            cut = request.end is not None and request.end.kind is not EndKind.ANSWERED
            return CUT if cut else end_of(request.status)
        finally:
            self._clients.remove(client)
            if request.end is None:
                service.leave(number)

    async def _pump(self, request: ProxiedRequest, receive: Receive, limit: int) -> None:
        if await request.pump(receive, limit):
            self._gone(request)
        else:
            request.service.leave(request.number)
            request.ended(AppEnd(kind=EndKind.REFUSED, error_type="PayloadTooLarge"))

    def _gone(self, request: ProxiedRequest) -> None:
        request.service.leave(request.number)
        request.ended(AppEnd(kind=EndKind.ANSWERED))

    def _waits_no_longer(self, request: ProxiedRequest, head: _RequestHead) -> None:
        request.service.leave(request.number)
        message = f"the client said that it waits no longer than {head.wait_s:g} s"
        request.ended(
            AppEnd(kind=EndKind.LATE, error_type="Timeout", message=message, phase="client")
        )

    # WebSockets.

    async def _serve_socket(self, scope: Scope, receive: Receive, send: Send) -> str:
        await receive()  # websocket.connect
        try:
            head = self._read_head(scope)
            service = self._open()
            if service.state is AppState.LOADING:
                raise _TurnedAwayError(503, "The application is loading", "Overloaded")
        except _TurnedAwayError as refused:
            await deny(
                scope,
                send,
                refused.status,
                refused.detail,
                refused.error_type,
                request_id=id_of(scope),
            )
            return end_of(refused.status)
        socket = ProxiedSocket(asyncio.get_running_loop(), self._body_limit, head.given_id)
        socket.number = number = service.request(
            AppRequest(
                fields=_fields(scope, head.headers, WEBSOCKET),
                socket=True,
            ),
            socket,
        )
        pump = asyncio.ensure_future(socket.pump(service, receive))
        try:
            end = await socket.serve(service, send)
            if end is not None and end.kind is not EndKind.ANSWERED:
                detail = sentence(end.message) or "Internal Server Error"
                await deny(
                    scope,
                    send,
                    _STATUS[end.kind],
                    detail,
                    end.error_type,
                    end.phase,
                    request_id=socket.id,
                )
                return end_of(_STATUS[end.kind])
            cut = socket.end is not None and socket.end.kind is not EndKind.ANSWERED
            return CUT if cut else end_of(socket.status)
        finally:
            pump.cancel()
            service.leave(number)

    # Answers to requests that the app has not answered.

    async def _tell(self, scope: Scope, end: AppEnd, send: Send, request_id: bytes) -> int:
        """Send the error to the client; return its status, or 0 if the client has disconnected."""
        if end.kind is EndKind.ANSWERED:
            return 0
        if end.error_type == "PayloadTooLarge":
            refused = self._too_large()
            body = detail_body(refused.detail, refused.error_type)
            await respond(send, refused.status, body, close=True, request_id=request_id)
            return refused.status
        status = _STATUS[end.kind]
        if status == 500:
            body, content = INTERNAL
            await respond(send, status, body, content=content, request_id=request_id)
            return status
        safe = end.kind is EndKind.REFUSED or scope["method"] in _SAFE
        again = 1 if safe and status in (502, 503) else None
        body = detail_body(sentence(end.message), end.error_type, end.phase)
        closes = self._draining()
        await respond(send, status, body, retry_after=again, close=closes, request_id=request_id)
        return status


def _fields(scope: Scope, headers: list[tuple[bytes, bytes]], method: str = "") -> list[bytes]:
    client, server = scope.get("client"), scope.get("server")
    return app_messages.request_fields(
        (
            scope["scheme"],
            scope.get("root_path", ""),
            None if client is None else (client[0], client[1]),
            None if server is None else (server[0], server[1]),
        ),
        method or scope["method"],
        scope["http_version"],
        scope["path"],
        scope["raw_path"],
        scope["query_string"],
        headers,
    )


def _after(rest: bytes, more: bool, receive: Receive) -> Receive:
    """Return a `receive` that first returns the rest of a message received before."""
    if not rest:
        return receive
    held = [rest]

    async def first() -> Message:
        if held:
            return {"type": "http.request", "body": held.pop(), "more_body": more}
        return await receive()

    return first


def _segments(path: str) -> tuple[str, ...]:
    """Return the parts of a path as a lenient server may read it: ``//a/./b/../`` is ``a``."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return tuple(parts)


def _seconds(name: bytes, value: bytes) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise _TurnedAwayError(
            422,
            f"{name.decode()}: {value.decode('latin-1')!r} is not a positive number of seconds",
            "InvalidRequest",
        )
    return seconds
