"""The page at ``/``: three files of the package, which load nothing from other servers.

The files contain no statistics, so they need no token; the page requests these separately.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from flashpool.frontends.admin.gate import Gate, Guard

from .route import AdminRoute, Handler

_FILES: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_HEADERS: Final[Mapping[str, str]] = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def routes(gate: Gate) -> list[AdminRoute]:
    """Return the routes of the page, and of the query whether the page is signed in."""

    async def session(request: Request) -> Response:
        known = gate.guarded(Guard.TOKEN, request.headers) is None
        return Response(
            b'{"signed_in":%s}' % (b"true" if known else b"false"), media_type="application/json"
        )

    rows = [
        AdminRoute(path=path, handler=_serves(name, kind), guard=Guard.PROBE)
        for path, (name, kind) in _FILES.items()
    ]
    return [*rows, AdminRoute(path="/session", handler=session, guard=Guard.PROBE)]


def _serves(name: str, kind: str) -> Handler:
    data = files("flashpool.frontends.admin.page").joinpath(name).read_bytes()

    async def serve(_request: Request) -> Response:
        return Response(data, headers={**_HEADERS, "content-type": kind})

    return serve
