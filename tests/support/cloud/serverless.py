"""The REST that the client of SDK 2.0 asks about endpoints; what it saves goes through GraphQL."""

from aiohttp import web

from support.cloud.control_plane import delete_endpoint
from support.cloud.recording import json_answer, refuse, state


def add_routes(app: web.Application) -> None:
    at, router = "/v2/serverless", app.router
    router.add_get(at, endpoints, name="serverless")
    router.add_get(at + "/{endpoint}/workers", workers, name="serverless-workers")
    router.add_delete(at + "/{endpoint}", delete, name="serverless-delete")


async def endpoints(request: web.Request) -> web.Response:
    _check_key(request)
    saved = [one.saved for one in state(request).endpoints.values() if one.saved]
    return json_answer({"endpoints": saved})


async def workers(request: web.Request) -> web.Response:
    _check_key(request)
    return json_answer({"workers": [], "summary": {}})


async def delete(request: web.Request) -> web.Response:
    _check_key(request)
    delete_endpoint(state(request), request.match_info["endpoint"])
    return web.Response(status=204)


def _check_key(request: web.Request) -> None:
    if request.headers.get("Authorization") != f"Bearer {state(request).config.api_key}":
        refuse(401, "not a client's key")
