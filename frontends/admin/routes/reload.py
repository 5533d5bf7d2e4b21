"""``POST /reload``: read the deployed app's artifact again, and serve its present content.

    200 reloaded    the successor has loaded, and gets all requests
    200 unchanged   the artifact is the one that is served already
    422 failed      the new app cannot be loaded, and the old app keeps serving; with the reason
    409 no_app      no app is served yet; with the reason
    404, 409        this server never serves an app

The server answers when the reload has finished, which takes as long as the app takes to load. A
client that disconnects earlier does not cancel the reload. Clients that send the request during a
reload get the outcome of that reload.
"""

from __future__ import annotations

import logging
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from flashpool.frontends.admin.gate import Gate
from flashpool.frontends.admin.served import Served
from flashpool.frontends.service import ReloadOutcome

from .route import AdminRoute, asker, refused

_log = logging.getLogger(__name__)

_STATUS: Final = {
    ReloadOutcome.RELOADED: 200,
    ReloadOutcome.UNCHANGED: 200,
    ReloadOutcome.FAILED: 422,
    ReloadOutcome.NO_APP: 409,
}
_NO_APP: Final = "This server serves no deployed app, so there is nothing to reload: it runs what each call brings."
_JOBS: Final = (
    "This server runs jobs, and a reload is for apps that serve HTTP: to have jobs run by a new "
    "artifact, stop the server with SIGTERM, which lets its jobs finish, and start another."
)


def routes(served: Served, gate: Gate) -> list[AdminRoute]:
    """Return the route."""

    async def reload(request: Request) -> Response:
        if served.mode == "queue":
            return refused(409, _JOBS)
        reload_app = None if served.service is None else served.service.reload_app
        if reload_app is None:
            return refused(404, _NO_APP)
        # The request is logged again with its status, which may be minutes later.
        _log.info(
            "Admin: POST /reload: the artifact is looked at again; asked by %s",
            asker(request, gate),
        )
        found = await reload_app()
        body = {"outcome": found.outcome.value, "detail": found.message}
        return JSONResponse(body, _STATUS[found.outcome])

    return [AdminRoute(path="/reload", method="POST", handler=reload)]
