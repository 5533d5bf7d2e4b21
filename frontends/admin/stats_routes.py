"""``GET /stats``: the pool as it is now, as JSON."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from .gate import Guard
from .routes import AdminRoute
from .served import Served


def routes(served: Served) -> list[AdminRoute]:
    """The figures."""

    async def stats(_request: Request) -> Response:
        return Response(msgspec.json.encode(served.pool.stats()), media_type="application/json")

    return [AdminRoute(path="/stats", handler=stats, guard=Guard.READ)]
