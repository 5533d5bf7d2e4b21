"""Answers that the front-end itself gives to clients of an app."""

from __future__ import annotations

import json
from typing import Final

from starlette.types import Scope, Send

from flashpool.pool import call_ids
from flashpool.pool.apps import Headers

_REQUEST_ID: Final = b"x-request-id"
#: Body and type of a 500, as uvicorn sends them; details are in the log.
INTERNAL: Final = (b"Internal Server Error", b"text/plain; charset=utf-8")


def with_id(headers: Headers, request_id: bytes) -> Headers:
    """Return the headers with the request's id, unless the app sets one."""
    for name, _ in headers:
        if name == _REQUEST_ID:
            return headers
    return [*headers, (_REQUEST_ID, request_id)]


def id_of(scope: Scope) -> bytes:
    """Return the id that the client sent, or a new id, for a request without a call id."""
    given = dict(scope["headers"]).get(_REQUEST_ID, b"")
    if call_ids.GIVEN_BYTES.fullmatch(given):
        return bytes(given)
    return call_ids.name_bytes(next(call_ids.numbers))


def detail_body(detail: str, error_type: str = "", phase: str = "") -> bytes:
    """Return the body of an error."""
    found = {"detail": detail, "error_type": error_type, "phase": phase}
    return json.dumps({name: value for name, value in found.items() if value}).encode()


def unhealthy_body(reason: str) -> bytes:
    """Return the body of a ``/ping`` answered with 503."""
    return json.dumps({"status": "unhealthy", "reason": reason}).encode()


def sentence(text: str) -> str:
    """Return the text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


async def respond(
    send: Send,
    status: int,
    body: bytes,
    *,
    content: bytes = b"application/json",
    retry_after: int | None = None,
    close: bool = False,
    request_id: bytes = b"",
) -> None:
    """Answer a request."""
    headers: Headers = []
    if status != 204:
        headers = [(b"content-type", content), (b"content-length", b"%d" % len(body))]
    if retry_after is not None:
        headers.append((b"retry-after", b"%d" % retry_after))
    if close:
        headers.append((b"connection", b"close"))
    if request_id:
        headers.append((_REQUEST_ID, request_id))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def deny(
    scope: Scope,
    send: Send,
    status: int,
    detail: str,
    error_type: str,
    phase: str = "",
    *,
    request_id: bytes,
) -> None:
    """Answer a WebSocket that was not accepted; without that ASGI extension, close it (403)."""
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": 1013, "reason": ""})
        return
    body, content = detail_body(detail, error_type, phase), b"application/json"
    if status == 500:
        body, content = INTERNAL
    headers = [(b"content-type", content), (b"content-length", b"%d" % len(body))]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    headers.append((_REQUEST_ID, request_id))
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body, "more_body": False})
