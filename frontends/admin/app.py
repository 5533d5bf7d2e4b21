"""The ASGI application of the admin listener: the gate before a table of routes."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from .gate import Gate, Refusal
from .routes.route import AdminRoute, Handler, asker
from .routes.table import all_routes
from .served import Served

_log = logging.getLogger(__name__)


class AdminApp:
    """Pass each request through the gate, then to its route."""

    def __init__(self, served: Served, gate: Gate) -> None:
        self._gate = gate
        table = all_routes(served, gate)
        self._app: ASGIApp = Starlette(
            routes=[Route(row.path, self._guarded(row), methods=[row.method]) for row in table],
            exception_handlers={404: _not_served(table), 405: _not_served(table)},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, or the listener's start and stop."""
        if scope["type"] == "http":
            request = Request(scope)
            refusal = self._gate.refusal(request.method, request.headers)
            if refusal is not None:
                await _answer(refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _guarded(self, row: AdminRoute) -> Handler:
        async def handle(request: Request) -> Response:
            refusal = self._gate.guarded(row.guard, request.headers)
            if refusal is not None:
                return _answer(refusal)
            response = await row.handler(request)
            if row.method != "GET":
                self._log_change(request, response)
            return response

        return handle

    def _log_change(self, request: Request, response: Response) -> None:
        _log.info(
            "Admin: %s %s answered with %d; asked by %s",
            request.method,
            request.url.path,
            response.status_code,
            asker(request, self._gate),
        )


def _answer(refusal: Refusal) -> Response:
    headers: Mapping[str, str] = {"connection": "close"}
    if refusal.status == 401:
        headers = {**headers, "www-authenticate": "Bearer"}
    return JSONResponse({"detail": refusal.detail}, refusal.status, headers=headers)


def _not_served(table: list[AdminRoute]) -> Callable[[Request, Exception], Awaitable[Response]]:
    served = ", ".join(f"{row.method} {row.path}" for row in table)

    async def handle(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = f"{error.detail}. This port serves {served}; calls go to FLASHPOOL_PORT."
        return JSONResponse({"detail": detail}, error.status_code, headers=error.headers)

    return handle
