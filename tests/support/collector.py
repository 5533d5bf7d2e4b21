"""A collector of traces on loopback, for OpenTelemetry's HTTP exporter."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedSpan:
    """One span, with ids as hexadecimal text; an empty parent: it is a root."""

    name: str
    trace_id: str
    span_id: str
    parent: str
    start: int
    end: int
    kind: int
    failed: bool
    status_text: str
    attributes: dict[str, Any]
    #: Names and attributes.
    events: list[tuple[str, dict[str, Any]]]
    resource: dict[str, Any]


@dataclass(slots=True)
class Collector:
    """The spans that have arrived."""

    url: str
    spans: list[ReceivedSpan] = field(default_factory=list)
    #: Headers of each request.
    headers: list[dict[str, str]] = field(default_factory=list)

    def take(self, headers: dict[str, str], body: bytes) -> None:
        """Decode one request."""
        self.headers.append(headers)
        request = ExportTraceServiceRequest.FromString(body)
        for of_resource in request.resource_spans:
            resource = _attributes(of_resource.resource.attributes)
            for scope in of_resource.scope_spans:
                self.spans.extend(_received(span, resource) for span in scope.spans)

    def of_trace(self, trace_id: str) -> list[ReceivedSpan]:
        """Return all spans of one trace."""
        return [one for one in self.spans if one.trace_id == trace_id]

    def of_call(self, call_id: str) -> tuple[ReceivedSpan, list[ReceivedSpan]] | None:
        """Return a call's span and its children in order of time; None if not arrived yet."""
        for span in list(self.spans):
            if span.attributes.get("flashpool.call.id") == call_id:
                below = [one for one in self.of_trace(span.trace_id) if one.parent == span.span_id]
                return span, sorted(below, key=lambda one: one.start)
        return None


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a listening collector."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = False
        host, port = server.server_address[:2]
        collector = Collector(f"http://{host!s}:{port}")
        server.collector = collector  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, name="collector")
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    # No keep-alive: otherwise a thread would wait for the next request on each connection.
    protocol_version = "HTTP/1.0"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        assert self.path == "/v1/traces"
        self.server.collector.take(dict(self.headers), body)  # type: ignore[attr-defined]
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        """Suppress the log, which would appear in the test's output."""


def _received(span: Any, resource: dict[str, Any]) -> ReceivedSpan:
    return ReceivedSpan(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        kind=span.kind,
        failed=span.status.code == span.status.STATUS_CODE_ERROR,
        status_text=span.status.message,
        attributes=_attributes(span.attributes),
        events=[(event.name, _attributes(event.attributes)) for event in span.events],
        resource=resource,
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {one.key: _value(one.value) for one in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind)
