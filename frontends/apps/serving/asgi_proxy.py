"""The front-end of a deployed app: an ASGI application that passes requests on to its workers.

    GET, HEAD /ping     answered here, whatever the app has
    /execute            404, however it is written
    all else            --> AppService --> a worker's application

It never runs, imports or reads what the app does. Headers, their order and statuses are the app's,
both ways. What becomes of a request that the app does not answer is told here:

    raised 500 | crashed 502 | lost, refused, not loaded, draining 503 | late 504 | too large 413
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, MutableMapping
from typing import Any, Final, NamedTuple

from starlette.types import Message, Receive, Scope, Send

from flashpool.frontends.http_server.access_log import logged
from flashpool.pool._child import app_messages
from flashpool.pool.apps import AppEnd, AppRequest, AppService, AppState, EndKind

from .client_watch import ClientWatch, WatchedClient
from .proxied_request import ProxiedRequest

#: Seconds that requests of a scope may take; None: any time.
LimitOf = Callable[[MutableMapping[str, Any]], float | None]

_EXECUTE: Final = ("execute",)
_TIMEOUTS: Final = (b"flashpool-timeout", b"x-flashpool-timeout-s")
#: Methods that may be sent again by whoever has no answer.
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
    """The request is not for the app; says what its client is told."""

    def __init__(self, status: int, detail: str, error_type: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.error_type = error_type


class _RequestHead(NamedTuple):
    """What of a request's headers matters here, and the headers for the app."""

    headers: list[tuple[bytes, bytes]]
    #: Bytes of its body, as it says.
    length: int
    #: How long its client waits.
    wait_s: float
    #: Whether its client waits to be asked for the body.
    expects: bool


class AppProxy:
    """Requests of one app."""

    def __init__(
        self,
        service: AppService,
        *,
        limit_of: LimitOf,
        max_body_mb: int,
        generated: bool,
        draining: Callable[[], bool],
        access_log: bool = False,
    ) -> None:
        self._service = service
        self._limit_of = limit_of
        self._max_body_mb = max_body_mb
        self._body_limit = max_body_mb * 1024 * 1024
        self._generated = generated
        self._draining = draining
        self._clients = ClientWatch()
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if self._access_log:
            send = logged(scope, send)
        path = scope["path"]
        if path == "/ping" and scope["method"] in ("GET", "HEAD"):
            await self._ping(send)
            return
        try:
            if self._generated and "execute" in path and _segments(path) == _EXECUTE:
                raise _TurnedAwayError(404, "Not Found", "")
            head = self._read_head(scope["headers"])
            if self._draining():
                raise _TurnedAwayError(503, "The server is draining", "Overloaded")
            await self._pass_on(scope, head, receive, send)
        except _TurnedAwayError as refused:
            again = 1 if refused.status == 503 else None
            closes = refused.status in (413, 503)
            body = _detail(refused.detail, refused.error_type)
            await _respond(send, refused.status, body, retry_after=again, close=closes)

    # Health.

    def health(self) -> tuple[int, bytes]:
        """Status and body of ``/ping``: 204 while the app loads, 200, or 503 with a reason."""
        if self._draining():
            return 503, _unhealthy("the server is draining")
        state = self._service.state
        if state is AppState.SERVED:
            return 200, _HEALTHY
        if state is AppState.LOADING:
            return 204, b""
        return 503, _unhealthy(self._service.failure)

    async def _ping(self, send: Send) -> None:
        status, body = self.health()
        await _respond(send, status, body, close=self._draining())

    # The way in.

    def _read_head(self, given: list[tuple[bytes, bytes]]) -> _RequestHead:
        length, wait_s, expects, ours = 0, math.inf, False, False
        for name, value in given:
            if name == b"content-length":
                length = int(value[:20]) if value.isdigit() else 0
            elif name in _TIMEOUTS:
                wait_s, ours = _seconds(name, value), True
            elif name == b"expect":
                expects = value.lower() == b"100-continue"
        if length > self._body_limit:
            raise self._too_large()
        headers = [one for one in given if one[0] not in _TIMEOUTS] if ours else given
        return _RequestHead(headers, length, wait_s, expects)

    def _too_large(self) -> _TurnedAwayError:
        return _TurnedAwayError(
            413,
            f"The body is larger than {self._max_body_mb} MiB (FLASHPOOL_MAX_BODY_MB)",
            "PayloadTooLarge",
        )

    async def _pass_on(
        self, scope: Scope, head: _RequestHead, receive: Receive, send: Send
    ) -> None:
        first: Message = {}
        more = True
        if not head.expects:
            first = await receive()
            if first["type"] == "http.disconnect":
                return
            more = first.get("more_body", False)
        body = first.get("body", b"")
        if len(body) > self._body_limit:
            raise self._too_large()
        loop = asyncio.get_running_loop()
        request = ProxiedRequest(loop)
        window = 0 if head.expects else app_messages.WINDOW
        begin, rest = body[: app_messages.PIECE], body[app_messages.PIECE :]
        request.body_room = window - len(begin)
        request.number = number = self._service.request(
            AppRequest(
                fields=_fields(scope, head.headers),
                body=begin,
                more=more or bool(rest),
                on_demand=head.expects,
                limit_s=self._limit_of(scope),
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
            end = await request.answer(self._service, send, self._draining())
            if end is not None:
                await self._tell(scope, end, send)
        finally:
            self._clients.remove(client)
            if request.end is None:
                self._service.leave(number)

    async def _pump(self, request: ProxiedRequest, receive: Receive, limit: int) -> None:
        if await request.pump(self._service, receive, limit):
            self._gone(request)
        else:
            self._service.leave(request.number)
            request.ended(AppEnd(kind=EndKind.REFUSED, error_type="PayloadTooLarge"))

    def _gone(self, request: ProxiedRequest) -> None:
        self._service.leave(request.number)
        request.ended(AppEnd(kind=EndKind.ANSWERED))

    def _waits_no_longer(self, request: ProxiedRequest, head: _RequestHead) -> None:
        self._service.leave(request.number)
        message = f"the client said that it waits no longer than {head.wait_s:g} s"
        request.ended(
            AppEnd(kind=EndKind.LATE, error_type="Timeout", message=message, phase="client")
        )

    # The way out, of what the app has not answered.

    async def _tell(self, scope: Scope, end: AppEnd, send: Send) -> None:
        if end.kind is EndKind.ANSWERED:
            return  # its client has left
        if end.error_type == "PayloadTooLarge":
            refused = self._too_large()
            body = _detail(refused.detail, refused.error_type)
            await _respond(send, refused.status, body, close=True)
            return
        status = _STATUS[end.kind]
        if status == 500:
            # As the server that the app knows says it: details are in the log.
            body, content = b"Internal Server Error", b"text/plain; charset=utf-8"
            await _respond(send, status, body, content=content)
            return
        safe = end.kind is EndKind.REFUSED or scope["method"] in _SAFE
        again = 1 if safe and status in (502, 503) else None
        body = _detail(_sentence(end.message), end.error_type, end.phase)
        await _respond(send, status, body, retry_after=again, close=self._draining())


def _fields(scope: Scope, headers: list[tuple[bytes, bytes]]) -> list[bytes]:
    client, server = scope.get("client"), scope.get("server")
    return app_messages.request_fields(
        (
            scope["scheme"],
            scope.get("root_path", ""),
            None if client is None else (client[0], client[1]),
            None if server is None else (server[0], server[1]),
        ),
        scope["method"],
        scope["http_version"],
        scope["path"],
        scope["raw_path"],
        scope["query_string"],
        headers,
    )


def _after(rest: bytes, more: bool, receive: Receive) -> Receive:
    """What is received when some of it is here already."""
    if not rest:
        return receive
    held = [rest]

    async def first() -> Message:
        if held:
            return {"type": "http.request", "body": held.pop(), "more_body": more}
        return await receive()

    return first


def _segments(path: str) -> tuple[str, ...]:
    """The parts of a path as a lenient reader may see them: ``//a/./b/../`` is ``a``."""
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
            f"{name.decode()}: {value.decode('latin-1')!r} is no positive number of seconds",
            "InvalidRequest",
        )
    return seconds


def _detail(detail: str, error_type: str = "", phase: str = "") -> bytes:
    found = {"detail": detail, "error_type": error_type, "phase": phase}
    return json.dumps({name: value for name, value in found.items() if value}).encode()


def _unhealthy(reason: str) -> bytes:
    return json.dumps({"status": "unhealthy", "reason": reason}).encode()


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


async def _respond(
    send: Send,
    status: int,
    body: bytes,
    *,
    content: bytes = b"application/json",
    retry_after: int | None = None,
    close: bool = False,
) -> None:
    headers = []
    if status != 204:
        headers = [(b"content-type", content), (b"content-length", b"%d" % len(body))]
    if retry_after is not None:
        headers.append((b"retry-after", b"%d" % retry_after))
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
