"""What clients of an app are told by the front-end itself."""

from __future__ import annotations

import json
from typing import Final

from starlette.types import Scope, Send

#: Body and type of a 500, as the server that the app knows says it: details are in the log.
INTERNAL: Final = (b"Internal Server Error", b"text/plain; charset=utf-8")


def detail_body(detail: str, error_type: str = "", phase: str = "") -> bytes:
    """The body of an error."""
    found = {"detail": detail, "error_type": error_type, "phase": phase}
    return json.dumps({name: value for name, value in found.items() if value}).encode()


def unhealthy_body(reason: str) -> bytes:
    """The body of ``/ping`` that is 503."""
    return json.dumps({"status": "unhealthy", "reason": reason}).encode()


def sentence(text: str) -> str:
    """The text with a capital in front."""
    return text[:1].upper() + text[1:]


async def respond(
    send: Send,
    status: int,
    body: bytes,
    *,
    content: bytes = b"application/json",
    retry_after: int | None = None,
    close: bool = False,
) -> None:
    """Answer a request."""
    headers = []
    if status != 204:
        headers = [(b"content-type", content), (b"content-length", b"%d" % len(body))]
    if retry_after is not None:
        headers.append((b"retry-after", b"%d" % retry_after))
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def deny(
    scope: Scope, send: Send, status: int, detail: str, error_type: str, phase: str = ""
) -> None:
    """Answer a WebSocket that has not been accepted; where the server cannot, it says 403."""
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": 1013, "reason": ""})
        return
    body, content = detail_body(detail, error_type, phase), b"application/json"
    if status == 500:
        body, content = INTERNAL
    headers = [(b"content-type", content), (b"content-length", b"%d" % len(body))]
    if status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body, "more_body": False})
