"""Turns finished calls into spans: one for the call, and a child span for each phase.

A server creates a `TracedCall` for each call, which costs little. The thread that exports derives
everything else from it (`PhaseExporter`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from flashpool.pool import call_ids
from flashpool.pool.calls import Call, Outcome, Receipt

from .phases import failed_phase, timeline

#: Most characters of the name of an exception, which user code may choose.
_NAME: Final = 300


class TracedCall(ReadableSpan):
    """The span of a call, to which `PhaseExporter` adds the phases."""

    def __init__(
        self,
        call: Call,
        call_id: int,
        outcome: Outcome,
        *,
        context: SpanContext,
        parent: SpanContext | None,
        resource: Resource,
        scope: InstrumentationScope,
        start: int,
        end: int,
    ) -> None:
        super().__init__(
            call.label,
            context,
            parent,
            resource,
            kind=SpanKind.SERVER,
            start_time=start,
            end_time=end,
            instrumentation_scope=scope,
        )
        self._times = start, end
        self._call_name = call_ids.name_of(call_id) if call_id else ""
        self._request_id = call.request_id
        self._outcome = outcome

    def spans(self, new_id: Callable[[], int]) -> Iterator[ReadableSpan]:
        """Yield the span of the call with all known facts, then its phases in order of time."""
        outcome, own = self._outcome, self.context
        error = "" if outcome.error_type is None else outcome.error_type[:_NAME]
        start, end = self._times
        yield ReadableSpan(
            self.name,
            own,
            self.parent,
            self.resource,
            {**self._attributes_of_call(outcome.receipt), **_of_error(error)},
            _events(error, end),
            kind=self.kind,
            status=_status(error),
            start_time=start,
            end_time=end,
            instrumentation_scope=self.instrumentation_scope,
        )
        phases = timeline(outcome.receipt, start, end)
        failed = failed_phase(outcome, phases)
        for phase in phases:
            wrong = error if phase.name == failed else ""
            yield ReadableSpan(
                phase.name,
                SpanContext(own.trace_id, new_id(), False, own.trace_flags, own.trace_state),
                own,
                self.resource,
                _of_error(wrong),
                status=_status(wrong),
                start_time=phase.start,
                end_time=phase.end,
                instrumentation_scope=self.instrumentation_scope,
            )

    def _attributes_of_call(self, receipt: Receipt) -> dict[str, AttributeValue]:
        known: dict[str, AttributeValue | None] = {
            "code.function.name": self.name,
            "flashpool.call.id": self._call_name,
            "flashpool.request.id": self._request_id,
            "flashpool.environment": receipt.environment,
            "flashpool.environment.origin": receipt.provision.origin,
            "flashpool.start_method": receipt.start_method,
            "flashpool.preloaded": receipt.preloaded,
            "flashpool.attempts": receipt.attempts,
            "flashpool.gpus": receipt.gpus,
            "flashpool.worker.pid": receipt.pid,
            "flashpool.worker.peak_rss_mb": receipt.peak_rss_mb,
        }
        return {name: value for name, value in known.items() if value not in (None, "", ())}


def _of_error(error: str) -> Mapping[str, AttributeValue]:
    return {"error.type": error} if error else {}


def _status(error: str) -> Status:
    # No description: an exception's message may contain secrets of the caller.
    return Status(StatusCode.ERROR) if error else Status(StatusCode.UNSET)


def _events(error: str, at: int) -> Sequence[Event]:
    return [Event("exception", {"exception.type": error}, at)] if error else ()


class PhaseExporter(SpanExporter):
    """Adds phases to calls for another exporter. Runs in the exporting thread."""

    def __init__(self, inner: SpanExporter, new_id: Callable[[], int]) -> None:
        self._inner = inner
        self._new_id = new_id

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export calls with their phases."""
        found: list[ReadableSpan] = []
        for span in spans:
            found.extend(span.spans(self._new_id) if isinstance(span, TracedCall) else (span,))
        return self._inner.export(found)

    def shutdown(self) -> None:
        """Shut the other exporter down."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Pass the request on: this exporter buffers nothing itself."""
        return self._inner.force_flush(timeout_millis)
