"""Middleware around every request: its record, and the faults that the test has scripted."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, NoReturn

from aiohttp import web

from support.cloud.faults import Fault
from support.cloud.records import Exchange
from support.cloud.state import State

STATE: web.AppKey[State] = web.AppKey("state", State)
Next = Callable[[web.Request], Awaitable[web.StreamResponse]]


def state(request: web.Request) -> State:
    return request.app[STATE]


def refuse(status: int, why: str) -> NoReturn:
    """Answer it with an error, as the platform does."""
    raise Refused(status, why)


def read_json(body: bytes) -> dict[str, Any]:
    """Read an object as strict JSON: Python's reader also accepts NaN and UTF-16."""
    try:
        value = json.loads(body.decode(), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        refuse(400, f"no JSON: {error}")
    return value if isinstance(value, dict) else refuse(400, "no JSON object")


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


class Refused(Exception):
    """Raised to answer the request with this error."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


@web.middleware
async def record(request: web.Request, handler: Next) -> web.StreamResponse:
    """The outermost middleware: record requests and answers, including hung and cut ones."""
    exchanges = state(request).exchanges
    index = len(exchanges)
    exchanges.append(_exchange(request, b""))
    exchanges[index] = replace(exchanges[index], body=await request.read())
    answer = await _with_faults(request, handler)
    exchanges[index] = replace(exchanges[index], status=answer.status, answered_at=time.monotonic())
    state(request).changes.tell()
    return answer


def _exchange(request: web.Request, body: bytes) -> Exchange:
    parts = request.match_info
    return Exchange(
        at=time.monotonic(),
        verb=parts.route.name or request.path,
        method=request.method,
        path=request.path_qs,
        query=dict(request.query),
        headers=dict(request.headers),
        body=body,
        endpoint=parts.get("endpoint"),
        worker=parts.get("worker"),
        job=parts.get("job"),
        status=None,
        answered_at=None,
    )


async def _with_faults(request: web.Request, carry_out: Next) -> web.StreamResponse:
    fault = _met(request)
    if not fault:
        return await _carried_out(request, carry_out)
    if fault.delay_s:
        await asyncio.sleep(fault.delay_s)
    if fault.hang:
        await _hang(request, fault)
    if fault.carried_out:
        await _carried_out(request, carry_out)
    if fault.cut:
        await _cut(request)
    if fault.status is not None:
        return web.Response(status=fault.status, body=fault.body, content_type=fault.content_type)
    return await _carried_out(request, carry_out)


def _met(request: web.Request) -> Fault | None:
    parts = request.match_info
    return state(request).script.meets(
        parts.route.name or request.path,
        job=parts.get("job"),
        worker=parts.get("worker"),
        now=time.monotonic(),
    )


async def _carried_out(request: web.Request, carry_out: Next) -> web.StreamResponse:
    try:
        return await carry_out(request)
    except Refused as refused:
        return web.json_response({"error": refused.why}, status=refused.status)


async def _hang(request: web.Request, fault: Fault) -> None:
    """Hang until the fault is cleared or its time is over; cancelled when the client
    disconnects.
    """
    here = state(request)
    await here.changes.until(lambda: not here.script.holds(fault, time.monotonic()), fault.for_s)


async def _cut(request: web.Request) -> NoReturn:
    """Cut the connection, which also cancels this handler."""
    if request.transport:
        request.transport.abort()
    await asyncio.Event().wait()
    raise AssertionError("nobody sets it")


def json_answer(value: Any, status: int = 200) -> web.Response:
    return web.json_response(value, status=status)
