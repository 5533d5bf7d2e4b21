"""``GET /stats``, its schema, ``GET /metrics``, and ``GET /events`` for the page.

A snapshot is taken on the loop, and encoded in threads. A slow reader blocks only its own
connection: events that it has not read are skipped, not stored for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from flashpool.frontends.admin.gate import Gate, Guard
from flashpool.frontends.admin.metrics import render
from flashpool.frontends.admin.served import Served
from flashpool.frontends.admin.state_files import state_folder
from flashpool.frontends.admin.stats_document import StatsDocument, document, schema, with_memory
from flashpool.frontends.admin.storage import Storage
from flashpool.frontends.telemetry.exemplars import Exemplars

from .route import AdminRoute

#: Seconds between two events.
EVENT_S: Final = 2.0
#: Most streams at once; each page has one.
MOST_STREAMS: Final = 16


def routes(served: Served, gate: Gate) -> list[AdminRoute]:
    """Return the routes of the stats document."""
    return Figures(served, gate).routes()


class Figures:
    """The handlers that show the stats document."""

    def __init__(self, served: Served, gate: Gate) -> None:
        self._served = served
        self._gate = gate
        self._storage = Storage(_places(served))
        self._streams = 0

    def routes(self) -> list[AdminRoute]:
        """Return the routes of these handlers."""
        rows = {
            "/stats": self._stats,
            "/stats/schema": self._schema,
            "/metrics": self._metrics,
            "/events": self._events,
        }
        return [
            AdminRoute(path=path, handler=handler, guard=Guard.READ)
            for path, handler in rows.items()
        ]

    def _document(self, request: Request) -> StatsDocument:
        with_output = self._gate.guarded(Guard.TOKEN, request.headers) is None
        return document(self._served, self._storage, with_output=with_output)

    async def _stats(self, request: Request) -> Response:
        data = await asyncio.to_thread(_encoded, self._document(request))
        return Response(data, media_type="application/json")

    async def _schema(self, _request: Request) -> Response:
        return JSONResponse(schema(), media_type="application/schema+json")

    async def _metrics(self, request: Request) -> Response:
        accept = request.headers.get("accept", "")
        service = self._served.service
        traced = None if service is None or service.tracing is None else service.tracing.exemplars
        data, kind = await asyncio.to_thread(_rendered, self._document(request), accept, traced)
        return Response(data, headers={"content-type": kind})

    async def _events(self, request: Request) -> Response:
        if self._streams >= MOST_STREAMS:
            detail = f"{MOST_STREAMS} pages are open already."
            return JSONResponse({"detail": detail}, 503, headers={"retry-after": "10"})
        headers = {"cache-control": "no-store"}
        events = self._stream(partial(self._document, request))
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    async def _stream(self, take: partial[StatsDocument]) -> AsyncIterator[bytes]:
        self._streams += 1
        try:
            while not self._served.stopping.is_set():
                data = await asyncio.to_thread(_encoded, take())
                yield b"event: stats\ndata: " + data + b"\n\n"
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._served.stopping.wait(), EVENT_S)
        finally:
            self._streams -= 1


def _encoded(stats: StatsDocument) -> bytes:
    return msgspec.json.encode(with_memory(stats))


def _rendered(stats: StatsDocument, accept: str, exemplars: Exemplars | None) -> tuple[bytes, str]:
    return render(with_memory(stats), accept, exemplars)


def _places(served: Served) -> dict[str, Path]:
    settings = served.settings
    places = {"local": Path(settings.local_dir) if settings.local_dir else state_folder(settings)}
    if settings.volume is not None:
        places["volume"] = Path(settings.volume)
    return places
