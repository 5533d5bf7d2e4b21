"""Logs each request of a client, if `FLASHPOOL_ACCESS_LOG` is set.

The path is logged without its query, which may contain secrets. Bodies and headers are never
logged.
"""

from __future__ import annotations

import logging
import time
from typing import Final

from starlette.types import Message, Scope, Send

from flashpool.frontends.logs import line_format

_log = logging.getLogger("flashpool.access")
#: Most characters of a path.
_PATH: Final = 300


def logged(scope: Scope, send: Send) -> Send:
    """Return a `send` that also logs the request after its response."""
    began = time.monotonic()
    status, size, request_id = 0, 0, ""

    async def tell(message: Message) -> None:
        nonlocal status, size, request_id
        if message["type"] == "http.response.start":
            status = message["status"]
            found = dict(message.get("headers", ()))
            request_id = found.get(b"x-request-id", b"").decode("latin-1")
        await send(message)
        if message["type"] == "http.response.body":
            size += len(message.get("body", b""))
            if not message.get("more_body", False):
                _tell(scope, status, size, time.monotonic() - began, request_id)

    return tell


def _tell(scope: Scope, status: int, size: int, seconds: float, request_id: str) -> None:
    client = scope.get("client")
    _log.info(
        "%s %s %s %d, %d bytes, %.3f s",
        "-" if client is None else client[0],
        scope["method"],
        ascii(scope["path"][:_PATH])[1:-1],
        status,
        size,
        seconds,
        extra=line_format.of_call("", request_id),
    )
