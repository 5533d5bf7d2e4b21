"""The GraphQL that the client sends to provision: endpoints and templates, echoed back.

Queries are told apart by their field, and every field that is known is answered, asked for or
not; an unknown one is an error, as with the real thing.
"""

import re
from collections.abc import Callable
from typing import Any, Final

from aiohttp import web

from support.cloud.recording import json_answer, refuse, state
from support.cloud.state import Endpoint, State

Answer = Callable[[State, dict[str, Any]], Any]

_FIELD: Final = re.compile(r"\{\s*(\w+)")
#: Fields of the answer for a saved endpoint, beyond the fields that were sent.
_UNSENT: Final = {"userId": "user", "version": 1, "type": "QB"}


def add_routes(app: web.Application) -> None:
    app.router.add_post("/graphql", graphql, name="graphql")


async def graphql(request: web.Request) -> web.Response:
    if request.headers.get("Authorization") != f"Bearer {state(request).config.api_key}":
        refuse(401, "not a client's key")
    asked = await request.json()
    match = _FIELD.search(asked["query"])
    field = match[1] if match else ""
    answer = _ANSWERS.get(field)
    if answer is None:
        return json_answer({"errors": [{"message": f"unknown field {field!r}"}]})
    return json_answer({"data": {field: answer(state(request), asked.get("variables") or {})}})


def _save_endpoint(here: State, variables: dict[str, Any]) -> dict[str, Any]:
    sent = dict(variables["input"])
    template = sent.pop("template", None)
    if template:
        sent["templateId"] = _keep_template(here, template)["id"]
    known = here.endpoints.get(sent.get("id", ""))
    if known:
        known.saved |= sent
        return known.saved
    made = here.add_endpoint(
        f"ep{len(here.endpoints):02d}", {**_UNSENT, "aiKey": here.config.endpoint_key, **sent}
    )
    made.saved["id"] = made.id
    _start_worker(here, made)
    return made.saved


def _start_worker(here: State, endpoint: Endpoint) -> None:
    timeout_ms = endpoint.saved.get("executionTimeoutMs") or 0
    if timeout_ms > 0:
        endpoint.queue.execution_timeout_s = timeout_ms / 1000
    template = here.templates.get(endpoint.saved.get("templateId", ""), {})
    if endpoint.saved["type"] == "QB":
        variables = {pair["key"]: pair["value"] for pair in template.get("env") or []}
        here.pods.provision(endpoint.id, variables)


def _keep_template(here: State, sent: dict[str, Any]) -> dict[str, Any]:
    id_ = sent.get("id") or f"tpl{len(here.templates):02d}"
    kept = here.templates[id_] = {**here.templates.get(id_, {}), **sent, "id": id_}
    return kept


def _save_template(here: State, variables: dict[str, Any]) -> dict[str, Any]:
    return _keep_template(here, variables["input"])


def _delete_endpoint(here: State, variables: dict[str, Any]) -> None:
    delete_endpoint(here, variables["id"])


def delete_endpoint(here: State, id_: str) -> None:
    """Delete the endpoint and stop its worker."""
    if here.endpoints.pop(id_, None):
        here.pods.remove(id_)


def _template(here: State, variables: dict[str, Any]) -> dict[str, Any] | None:
    return here.templates.get(variables["id"])


def _myself(here: State, variables: dict[str, Any]) -> dict[str, Any]:
    known = here.endpoints.get(variables.get("id", ""))
    return {"endpoint": known and {"id": known.id}, "flashApps": []}


def _in_stock(here: State, variables: dict[str, Any]) -> list[dict[str, Any]]:
    stock = {"stockStatus": "High"}
    return [{"lowestPrice": stock, "specifics": stock}]


_ANSWERS: Final[dict[str, Answer]] = {
    "saveEndpoint": _save_endpoint,
    "saveTemplate": _save_template,
    "deleteEndpoint": _delete_endpoint,
    "podTemplate": _template,
    "myself": _myself,
    "gpuTypes": _in_stock,
    "cpuFlavors": _in_stock,
}
