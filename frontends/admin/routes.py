"""What the admin listener serves, and to whom: one row for each route.

    group of routes = a function (Served, Gate) -> list[AdminRoute], in a module of its own
    `all_routes` lists the groups: a new group is one line there

A handler is an ordinary Starlette endpoint. What a row says is checked before it runs (`app`):
its guard; and whatever is no GET is logged with who asked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .gate import Gate, Guard

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminRoute:
    """One route."""

    #: With Starlette's parameters, such as ``/calls/{call_id}/logs``.
    path: str
    handler: Handler
    method: str = "GET"
    guard: Guard = Guard.TOKEN


def refused(status: int, detail: str) -> Response:
    """The answer to what cannot be done; every error of this port has this form."""
    return JSONResponse({"detail": detail}, status)


def asker(request: Request, gate: Gate) -> str:
    """Who sent a request, and what they brought; for the log."""
    client = request.client
    who = "an unknown address" if client is None else f"{client.host} port {client.port}"
    return f"{who} with {gate.credential(request.headers).value}"
