"""Watches calls: lists them, shows their output and stacks, cancels them; and environments.

    GET    /calls                    running and waiting calls, and those that finished last
    GET    /calls/{id}               one call
    GET    /calls/{id}/logs          its stored output, then new output: server-sent events
    GET    /calls/{id}/stack         the Python stacks of the threads of its process, now
    DELETE /calls/{id}               cancel the call
    DELETE /instances/{name}         close an instance when its calls have finished; percent-encoded
    GET    /envs, POST /envs         list the store; build an environment before its first call
    DELETE /builds/{key}             cancel a build, and the calls that wait for it

An id is a call's number, its name, the ``X-Request-Id`` that its client gave, or its job's id.
"""

from __future__ import annotations

import asyncio
import codecs
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from flashpool.envs import Spec
from flashpool.frontends import responses
from flashpool.frontends.admin.served import Served
from flashpool.pool.errors import FlashpoolError
from flashpool.pool.watching import CallView, CallWatching, OutputFeed

from .route import AdminRoute, refused

#: Most bytes of a body.
_MOST: Final = 256 * 1024
#: Seconds between the comments that keep a silent stream of events open.
_KEEP_S: Final = 10.0
#: Seconds that a request waits for a build: by default, and at most.
_WAIT_S: Final = 30.0
_LONGEST_WAIT_S: Final = 3600.0

_Asked = Callable[[CallWatching, Request], Awaitable[Response]]


class BuildRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /envs``; fields are named as in a call's request."""

    dependencies: list[str] = msgspec.field(default_factory=list)
    system_dependencies: list[str] = msgspec.field(default_factory=list)
    python_version: str | None = None
    refresh: bool = False
    #: Report what would be done, and do nothing.
    dry_run: bool = False
    wait_s: float = _WAIT_S


def routes(served: Served) -> list[AdminRoute]:
    """Return all routes of calls. Each needs the token, because it shows output or ends calls."""

    def watched(handler: _Asked) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            watching = served.pool.watching
            if watching is None:
                return refused(501, "The calls of this pool cannot be looked into.")
            return await handler(watching, request)

        return handle

    async def cancel(watching: CallWatching, request: Request) -> Response:
        call = _call(watching, request)
        if call is None:
            return _no_call(request)
        if call.state == "ended":
            return refused(409, f"Call {call.id} has ended: {call.outcome}.")
        served.pool.cancel(call.number, "cancelled by an operator")
        return JSONResponse({"id": call.id, "cancelled": True})

    rows: list[tuple[str, str, _Asked]] = [
        ("GET", "/calls", _list_calls),
        ("GET", "/calls/{call_id}", _show_call),
        ("GET", "/calls/{call_id}/logs", _logs),
        ("GET", "/calls/{call_id}/stack", _stack),
        ("DELETE", "/calls/{call_id}", cancel),
        ("DELETE", "/instances/{name:path}", _close_instance),
        ("GET", "/envs", _list_environments),
        ("POST", "/envs", _build),
        ("DELETE", "/builds/{key}", _cancel_build),
    ]
    return [
        AdminRoute(method=method, path=path, handler=watched(handler))
        for method, path, handler in rows
    ]


# Calls.


async def _list_calls(watching: CallWatching, _request: Request) -> Response:
    return JSONResponse({"calls": [_row(one) for one in watching.calls()]})


async def _show_call(watching: CallWatching, request: Request) -> Response:
    call = _call(watching, request)
    return _no_call(request) if call is None else JSONResponse(_row(call))


async def _stack(watching: CallWatching, request: Request) -> Response:
    call = _call(watching, request)
    if call is None:
        return _no_call(request)
    found = await watching.stacks(call.number)
    if found is None:
        return refused(409, f"Call {call.id} does not run: {call.outcome or call.state}.")
    return JSONResponse({"id": call.id, "label": call.label, **asdict(found)})


async def _logs(watching: CallWatching, request: Request) -> Response:
    call = _call(watching, request)
    feed = None if call is None else watching.follow(call.number)
    if call is None or feed is None:
        return _no_call(request)
    if request.query_params.get("follow", "yes") in ("no", "0", "false"):
        feed.end(None)
    events = _events(watching, call, feed)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def _events(watching: CallWatching, call: CallView, feed: OutputFeed) -> AsyncIterator[bytes]:
    """Yield ``output`` and ``errors`` events with text as JSON, then ``end`` with the call."""
    # A piece may end in the middle of a character.
    decoders = {one: codecs.getincrementaldecoder("utf-8")("replace") for one in (False, True)}
    try:
        yield _event("call", _row(call))
        while True:
            piece = await feed.next(_KEEP_S)
            if piece is not None:
                chunk, stderr = piece
                kind = "errors" if stderr else "output"
                yield _event(kind, {"text": decoders[stderr].decode(chunk)})
            elif feed.ended:
                break
            else:
                yield b": still there\n\n"
        now = watching.call(call.number)
        yield _event("end", _row(now or call))
    finally:
        watching.unfollow(call.number, feed)


def _event(kind: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()


def _call(watching: CallWatching, request: Request) -> CallView | None:
    number = watching.find(request.path_params["call_id"])
    return None if number is None else watching.call(number)


def _no_call(request: Request) -> Response:
    return refused(
        404,
        f"There is no call {request.path_params['call_id']!r} here: it never existed, ran in another "
        "server, or ended before the 1,000 latest.",
    )


def _row(call: CallView) -> dict[str, Any]:
    return asdict(call)


# Instances and environments.


async def _close_instance(watching: CallWatching, request: Request) -> Response:
    name = request.path_params["name"]
    if not watching.close_instance(name, "closed by an operator"):
        return refused(404, f"There is no instance {name!r} here.")
    return JSONResponse({"instance": name, "closing": True})


async def _list_environments(watching: CallWatching, _request: Request) -> Response:
    try:
        found = dict(await watching.environments())
    except FlashpoolError as error:
        return _of_error(error)
    found["builds"] = [asdict(one) for one in watching.builds()]
    return Response(msgspec.json.encode(found, enc_hook=str), media_type="application/json")


async def _build(watching: CallWatching, request: Request) -> Response:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST:
            return refused(413, f"The body is larger than {_MOST} bytes.")
    try:
        asked = msgspec.json.decode(body, type=BuildRequest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return refused(422, f'The body must be JSON such as {{"dependencies": ["numpy"]}}: {error}')
    spec = Spec(
        requirements=tuple(asked.dependencies),
        system_packages=tuple(asked.system_dependencies),
        python_version=asked.python_version,
        refresh=asked.refresh,
    )
    wait_s = min(max(asked.wait_s, 0.0), _LONGEST_WAIT_S)
    try:
        if asked.dry_run:
            found = await watching.explain(spec)
        else:
            found = await watching.build(spec, wait_s)
    except FlashpoolError as error:
        return _of_error(error)
    status = 202 if found.get("state") == "building" else 200
    content = msgspec.json.encode(found, enc_hook=str)
    return Response(content, status, media_type="application/json")


async def _cancel_build(watching: CallWatching, request: Request) -> Response:
    key = request.path_params["key"]
    calls = watching.cancel_build(key, "its build was cancelled by an operator")
    if calls is None:
        return refused(404, f"There is no build {key!r} in progress; GET /envs lists them.")
    await asyncio.sleep(0)
    return JSONResponse({"key": key, "cancelled_calls": calls})


def _of_error(error: FlashpoolError) -> Response:
    # The status that a call would get: 422 for an invalid spec, else 503 (not available now).
    status = responses.STATUS.get(type(error).__name__, 503)
    return JSONResponse({"detail": error.message, "error_type": type(error).__name__}, status)
