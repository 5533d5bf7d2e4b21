"""``POST /session`` signs a page in, ``DELETE /session`` signs it out."""

from __future__ import annotations

from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from flashpool.frontends.admin.gate import Credential, Gate, Guard

from .route import AdminRoute, refused

#: Most bytes of a body with a token.
_MOST: Final = 8192


class _SignIn(msgspec.Struct):
    token: str


def routes(gate: Gate) -> list[AdminRoute]:
    """Return the routes for signing in and out."""

    async def sign_in(request: Request) -> Response:
        given = await _token(request)
        right = given is not None and gate.is_token(given)
        if not right and gate.credential(request.headers) is not Credential.TOKEN:
            return refused(401, "That is not the admin token.")
        return Response(status_code=204, headers={"set-cookie": gate.sessions.open()})

    async def sign_out(request: Request) -> Response:
        removal = gate.sessions.close(request.headers.get("cookie", ""))
        return Response(status_code=204, headers={"set-cookie": removal})

    return [
        AdminRoute(path="/session", method="POST", handler=sign_in, guard=Guard.PROBE),
        AdminRoute(path="/session", method="DELETE", handler=sign_out, guard=Guard.PROBE),
    ]


async def _token(request: Request) -> str | None:
    """Return the token of a body ``{"token": ...}``."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST:
            return None
    try:
        return msgspec.json.decode(body, type=_SignIn).token if body else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
