"""One route of the admin port: path, method, handler, and the guard that says who may use it.

    group of routes = a function (Served, Gate) -> list[AdminRoute], in a module of its own
    `table.all_routes` lists the groups: a new group is one line there

A handler is an ordinary Starlette endpoint. `app` checks the route's guard before the handler
runs, and logs every request that is not a GET together with its sender.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from flashpool.frontends.admin.gate import Gate, Guard

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminRoute:
    """A route, its handler, and the guard that `app` checks first."""

    #: A path, possibly with Starlette's parameters, such as ``/calls/{call_id}/logs``.
    path: str
    handler: Handler
    method: str = "GET"
    guard: Guard = Guard.TOKEN


def refused(status: int, detail: str) -> Response:
    """Return an error response: a JSON object with ``detail``, like every error of this port."""
    return JSONResponse({"detail": detail}, status)


def asker(request: Request, gate: Gate) -> str:
    """Return the sender's address and the kind of credential it sent, for the log."""
    client = request.client
    who = "an unknown address" if client is None else f"{client.host} port {client.port}"
    return f"{who} with {gate.credential(request.headers).value}"
