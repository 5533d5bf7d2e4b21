"""Refuses requests that a web page sent from a browser on this machine.

A browser lets any page send requests to loopback addresses. It names the page's origin
(``Origin``), except after DNS rebinding, where the page's own name resolves to this machine: then
``Host`` is the page's name.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

__all__ = ["SameMachine", "is_local"]

Message = MutableMapping[str, Any]
App = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]


class SameMachine:
    """An ASGI application around another.

    ``loopback``: the address is a loopback address, so ``Host`` must name this machine.
    """

    def __init__(self, app: App, *, loopback: bool) -> None:
        self._app = app
        self._loopback = loopback

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Handle one request, or the server's start and stop."""
        why = _refusal(scope["headers"], self._loopback) if scope["type"] == "http" else ""
        if not why:
            await self._app(scope, receive, send)
            return
        body = json.dumps({"detail": why}).encode()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _refusal(headers: Iterable[tuple[bytes, bytes]], loopback: bool) -> str:
    """Return why a request is refused, or an empty string."""
    found = {name: value.decode("latin-1") for name, value in headers}
    host = found.get(b"host", "")
    if loopback and host and not is_local(host):
        return (
            "this port is served to this machine only, and the request names another Host; "
            "ask for 127.0.0.1 or localhost"
        )
    origin = found.get(b"origin")
    if origin is not None and origin.partition("://")[2].lower() != host.lower():
        return "requests from web pages of another origin are not answered"
    return ""


def is_local(host: str) -> bool:
    """Return whether a ``Host`` header names this machine."""
    with contextlib.suppress(ValueError):
        name = urlsplit(f"//{host}").hostname or ""
        if name == "localhost" or name.endswith(".localhost"):
            return True
        return ipaddress.ip_address(name).is_loopback
    return False
