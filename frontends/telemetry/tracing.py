"""Traces the calls of one server: a `CallSpan` for each, from its submission to its outcome."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Final

from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from flashpool.frontends.logs import line_format
from flashpool.pool.calls import Call, Outcome
from flashpool.pool.trace_context import TraceContext

from .exemplars import Exemplars
from .exporters import ExporterError, exporters
from .spans import PhaseExporter, TracedCall

_log = logging.getLogger(__name__)

_NAME: Final = "flashpool"
#: Seconds that the server's exit waits for spans that were not exported yet.
_FLUSH_S: Final = 3.0
_NO_PARENT: Final = Context()
_PROPAGATOR: Final = TraceContextTextMapPropagator()


def tracing() -> Tracing | None:
    """Create a `Tracing` from OpenTelemetry's variables; log and return None if they prevent it.

    Calls matter more than their traces: an unusable exporter does not stop the server.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        _log.warning("Calls are not traced: OTEL_SDK_DISABLED is true")
        return None
    try:
        return Tracing(exporters(os.environ))
    except (ExporterError, ValueError) as error:
        _log.error("Calls are not traced: %s", error)
        return None


class Tracing:
    """Creates spans for calls, and exports them from threads. Use it in the loop's thread."""

    def __init__(self, outputs: list[SpanExporter]) -> None:
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._tracer = self._provider.get_tracer(_NAME, version("flashpool"))
        self._scope = InstrumentationScope(_NAME, version("flashpool"))
        new_id = self._provider.id_generator.generate_span_id
        self._processors = [BatchSpanProcessor(PhaseExporter(one, new_id)) for one in outputs]
        #: The latest calls that are exported, for metrics.
        self.exemplars = Exemplars()

    def begin(self, call: Call, caller: Mapping[str, str]) -> CallSpan:
        """Return the span of a call submitted now; ``caller``: its caller's trace context."""
        context = _PROPAGATOR.extract(caller, _NO_PARENT) if caller else _NO_PARENT
        parent = get_current_span(context).get_span_context()
        start = time.time_ns()
        own = self._tracer.start_span(
            call.label, context, SpanKind.SERVER, start_time=start
        ).get_span_context()
        return CallSpan(self, own, parent if parent.is_valid else None, start)

    def ended(self, span: CallSpan, call: Call, call_id: int, outcome: Outcome) -> None:
        """Export a finished call."""
        end = time.time_ns()
        ended = TracedCall(
            call,
            call_id,
            outcome,
            context=span.own,
            parent=span.parent,
            resource=self._provider.resource,
            scope=self._scope,
            start=span.start,
            end=max(end, span.start),  # the clock may have been set back
        )
        for processor in self._processors:
            processor.on_end(ended)
        if self._processors:
            self.exemplars.add(outcome.receipt, span.trace.trace_id, end / 1e9)

    async def close(self) -> None:
        """Export the remaining spans, for a limited time."""
        loop, closed = asyncio.get_running_loop(), asyncio.Event()

        def close() -> None:
            for processor in self._processors:
                processor.shutdown()  # type: ignore[no-untyped-call]
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                loop.call_soon_threadsafe(closed.set)

        # A daemon: a collector that does not answer must not hold up the server's exit.
        threading.Thread(target=close, name="last export of traces", daemon=True).start()
        try:
            await asyncio.wait_for(closed.wait(), _FLUSH_S)
        except asyncio.TimeoutError:
            _log.warning("The latest traces are lost: exporting them took more than %g s", _FLUSH_S)


class CallSpan:
    """The span of an unfinished call."""

    __slots__ = ("_tracing", "own", "parent", "start", "trace")

    def __init__(
        self, tracing: Tracing, own: SpanContext, parent: SpanContext | None, start: int
    ) -> None:
        self._tracing = tracing
        self.own = own
        self.parent = parent
        #: Nanoseconds since 1970.
        self.start = start
        #: Place of the call in the trace: spans of the call are children of this span.
        self.trace = TraceContext(
            f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}",
            own.trace_state.to_header(),
        )

    def ended(self, call: Call, call_id: int, outcome: Outcome) -> None:
        """Record the outcome of the call."""
        if self.own.trace_flags.sampled:
            self._tracing.ended(self, call, call_id, outcome)


def _resource() -> Resource:
    """Return the resource of this service; OpenTelemetry's variables override its attributes."""
    ours = Resource(
        {
            "service.name": _NAME,
            "service.version": version("flashpool"),
            "service.instance.id": line_format.pod(),
        }
    )
    return Resource.create().merge(ours).merge(OTELResourceDetector().detect())
