"""The admin listener: ``GET /stats``, on a port of its own, loopback unless told otherwise.

It shares the supervisor's loop, and so needs no lock: a snapshot is taken and encoded
between two events.
"""

from __future__ import annotations

import socket

import msgspec
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from flashpool.pool.backend import Backend

from .exposure import is_loopback
from .http_server.connection import AdminConnection
from .http_server.listener import ListenError, bind
from .http_server.same_machine import SameMachine
from .http_server.side_listener import SideListener
from .settings.table import Settings


def create_admin_app(pool: Backend) -> FastAPI:
    """The application of the admin listener."""

    async def stats(_request: Request) -> Response:
        return Response(msgspec.json.encode(pool.stats()), media_type="application/json")

    return FastAPI(
        title="flashpool admin",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        routes=[Route("/stats", stats, methods=["GET"])],
        exception_handlers={404: _not_served, 405: _not_served},
    )


async def _not_served(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = f"{error.detail}. This port serves GET /stats; calls go to FLASHPOOL_PORT."
    return JSONResponse({"detail": detail}, error.status_code, headers=error.headers)


def bind_admin(settings: Settings) -> socket.socket:
    """The admin socket. The default port gives way to a free one when it is taken."""
    try:
        return bind(settings.admin_host, settings.admin_port, "FLASHPOOL_ADMIN_PORT")
    except ListenError:
        if settings.origins.get("admin_port") == "environment":
            raise
        # A second server on a machine should not need a second setting.
        return bind(settings.admin_host, 0, "FLASHPOOL_ADMIN_HOST")


class Admin(SideListener):
    """The admin listener's life."""

    def __init__(self, pool: Backend, settings: Settings, sock: socket.socket) -> None:
        app = SameMachine(create_admin_app(pool), loopback=is_loopback(settings.admin_host))
        super().__init__(app, settings, sock, AdminConnection)
