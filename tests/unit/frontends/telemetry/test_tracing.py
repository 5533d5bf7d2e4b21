import asyncio
import logging
import subprocess
import sys
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from flashpool.frontends.telemetry.exporters import ExporterError, exporters
from flashpool.frontends.telemetry.tracing import Tracing, tracing
from flashpool.pool.calls import Call, Codec, Outcome, Receipt
from flashpool.pool.errors import Overloaded

CALLER = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
IMPORTS = """
import sys
import flashpool.frontends.lb.server, flashpool.frontends.lb.hosted, flashpool.frontends.qb.entry
from flashpool.frontends.assembly import make_service
from flashpool.frontends.settings.table import Settings
make_service(Settings.from_environ({}), 1000)
# The API itself is FastAPI's.
ours = ("opentelemetry.sdk", "opentelemetry.exporter", "google.protobuf", "flashpool.frontends.telemetry.spans")
print([name for name in sys.modules if name.startswith(ours)])
"""


class Kept(SpanExporter):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += spans
        return SpanExportResult.SUCCESS


def traced(outcome: Outcome, call_id: int = 7, *, label: str = "f") -> list[ReadableSpan]:
    """Return the exported spans of one call."""
    kept = Kept()

    async def run() -> None:
        one = Tracing([kept])
        call = Call(codec=Codec.FLASH, body=b"", label=label)
        span = one.begin(call, CALLER)
        span.start -= 1_000_000_000
        span.ended(call, call_id, outcome)
        await one.close()

    asyncio.run(run())
    return kept.spans


def test_a_server_without_telemetry_imports_none_of_it() -> None:
    found = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_phases_of_the_receipt_are_child_spans_of_the_call() -> None:
    seconds = {"queue_s": 0.1, "start_s": 0.2, "run_s": 0.3, "total_s": 0.6}
    span, *phases = traced(Outcome(receipt=Receipt(attempts=1, pid=5, **seconds)))
    assert span.context.trace_id == int(CALLER["traceparent"][3:35], 16)
    assert [one.name for one in phases] == ["queue", "start", "run"]
    assert all(one.parent == span.context for one in phases)
    assert len({one.context.span_id for one in (span, *phases)}) == 1 + len(phases)


def test_a_refused_call_has_a_span() -> None:
    error = Overloaded("the queue is full")
    (span,) = traced(Outcome(error_type=type(error).__name__, error=error.message), call_id=0)
    assert span.attributes is not None
    assert span.attributes["error.type"] == "Overloaded"
    assert "flashpool.call.id" not in span.attributes
    assert "the queue is full" not in span.to_json()


def test_names_chosen_by_user_code_are_truncated() -> None:
    span, *_ = traced(Outcome(error_type="E" * 10_000, from_user=True))
    assert span.attributes is not None
    assert len(str(span.attributes["error.type"])) == 300


def test_the_service_name_can_be_set_by_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    (span,) = traced(Outcome())
    assert span.resource.attributes["service.name"] == "flashpool"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    (span,) = traced(Outcome())
    assert span.resource.attributes["service.name"] == "mine"


def test_exporters_by_name() -> None:
    assert exporters({"OTEL_TRACES_EXPORTER": "none"}) == []
    found = exporters({"OTEL_TRACES_EXPORTER": "console, otlp"})
    assert [type(one).__name__ for one in found] == ["ConsoleSpanExporter", "OTLPSpanExporter"]
    for one in found:
        one.shutdown()
    for environ, said in (
        ({"OTEL_TRACES_EXPORTER": "elsewhere"}, "'elsewhere' is not installed"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "pigeon"}, "accepted: http/protobuf, grpc"),
    ):
        with pytest.raises(ExporterError, match=said):
            exporters(environ)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("OTEL_SDK_DISABLED", "true", "OTEL_SDK_DISABLED is true"),
        ("OTEL_TRACES_EXPORTER", "elsewhere", "'elsewhere' is not installed"),
    ],
)
def test_invalid_variables_do_not_prevent_the_start(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    value: str,
    said: str,
) -> None:
    monkeypatch.setenv(name, value)
    with caplog.at_level(logging.WARNING):
        assert tracing() is None
    assert said in caplog.text


def test_without_an_exporter_calls_still_get_a_trace_context(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    one = tracing()
    assert one is not None
    call = Call(codec=Codec.FLASH, body=b"", label="f")
    assert one.begin(call, CALLER).trace.trace_id == CALLER["traceparent"][3:35]
    asyncio.run(one.close())
