"""Probes of orchestrators, and the operator's switch for whether the server accepts new calls.

GET /livez     200 as long as the loop runs
GET /readyz    200 when calls start at once, else 503 with the reasons
POST /drain    refuse new calls: /readyz answers 503; the server runs on until SIGTERM
DELETE /drain  accept new calls again
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from flashpool.frontends.admin.gate import Gate, Guard
from flashpool.frontends.admin.served import Served
from flashpool.pool.apps import AppState
from flashpool.pool.stats import AppStats

from .route import AdminRoute, refused


@dataclass(frozen=True, slots=True, kw_only=True)
class NotReady:
    """A reason why calls do not start at once."""

    #: ``draining``, ``starting``, ``base_interpreter``, ``gpus``, ``volume`` or ``app``.
    cause: str
    detail: str


def routes(served: Served, gate: Gate) -> list[AdminRoute]:
    """Return the routes of probes and of the drain."""

    async def livez(_request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def readyz(request: Request) -> Response:
        reasons = not_ready(served)
        if gate.guarded(Guard.READ, request.headers) is not None:
            # On an open port, a client without a token sees the causes, but no paths and no names.
            reasons = [NotReady(cause=one.cause, detail="") for one in reasons]
        body = {"ready": not reasons, "reasons": reasons}
        data = msgspec.json.encode(body)
        return Response(data, 503 if reasons else 200, media_type="application/json")

    async def drain(_request: Request) -> Response:
        served.pool.take_calls(False)
        return JSONResponse({"draining": True, "unfinished": served.pool.unfinished})

    async def take_back(_request: Request) -> Response:
        if not served.pool.take_calls(True):
            return refused(409, "The server is stopping: this cannot be undone.")
        return JSONResponse({"draining": False, "unfinished": served.pool.unfinished})

    return [
        AdminRoute(path="/livez", handler=livez, guard=Guard.PROBE),
        AdminRoute(path="/readyz", handler=readyz, guard=Guard.PROBE),
        AdminRoute(path="/drain", method="POST", handler=drain),
        AdminRoute(path="/drain", method="DELETE", handler=take_back),
    ]


def not_ready(served: Served) -> list[NotReady]:
    """Return every reason why calls do not start at once; none if they do."""
    pool, found = served.pool, []
    if pool.draining:
        found.append(NotReady(cause="draining", detail="new calls are refused"))
    failure = served.service.start_failure if served.service is not None else ""
    if failure:
        found.append(NotReady(cause="base_interpreter", detail=failure))
    if pool.not_ready_reason:
        found.append(NotReady(cause="gpus", detail=pool.not_ready_reason))
    stats = pool.stats()
    found += [
        NotReady(cause="volume", detail=f"{one.root}: {one.problem}")
        for one in stats.stores
        if one.problem
    ]
    found += _app_reasons(served, stats.apps)
    if not found and not pool.ready:
        found.append(NotReady(cause="starting", detail="the base interpreter is not up yet"))
    return found


def _app_reasons(served: Served, apps: list[AppStats]) -> list[NotReady]:
    if served.mode == "app" and served.service is not None and not apps:
        if served.service.app_failure:
            return [NotReady(cause="app", detail=served.service.app_failure)]
        return [NotReady(cause="starting", detail="the app is being prepared")]
    return [
        NotReady(cause="app", detail=f"{one.app}: {one.failure}")
        if one.failure
        else NotReady(cause="starting", detail=f"{one.app}: it is being loaded")
        for one in apps
        if one.state != AppState.SERVED.value
    ]
