"""Traces of calls, from a real server to a collector over OTLP."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2e.queue_jobs import value, working
from e2e.server import Server, report, request, serving, until
from e2e.world import VERSION, World
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from support.cloud import Platform
from support.collector import Collector, ReceivedSpan, collecting

pytestmark = pytest.mark.shared_pool

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "collector-secret"
VARIABLES = """def f(*names):
    import os
    return [os.environ.get(name) for name in names]"""


def caller(trace: str = TRACE, flags: str = "01", **more: str) -> dict[str, str]:
    """Headers of a caller with a trace."""
    return {"traceparent": f"00-{trace}-{PARENT}-{flags}", **more}


def tracing(collector: Collector) -> dict[str, str]:
    """Variables of a server that exports to the collector."""
    return {
        "FLASHPOOL_TELEMETRY": "yes",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization={SECRET}",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def server(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    more = {"FLASHPOOL_PASS_ENV": "*", "FLASHPOOL_LOG_FORMAT": "json", "FLASHPOOL_SLOTS": "2"}
    with serving(folder, **tracing(collector), **more) as server:
        yield server


def call(server: Server, code: str, *args: Any, headers: dict[str, str] | None = None, **fields: Any) -> Any:  # fmt: skip
    body = request(code, *args, **fields)
    return server.http.post("/execute", json=body, headers=headers or {}).json()


def spans_of(collector: Collector, answer: Any) -> tuple[ReceivedSpan, list[ReceivedSpan]]:
    """Return the span of a call and the spans of its phases, which arrive together."""
    assert answer["receipt"], report(answer)
    return until(lambda: collector.of_call(answer["receipt"]["call_id"]))  # type: ignore[no-any-return]


def assert_within(span: ReceivedSpan, below: list[ReceivedSpan]) -> None:
    """Check that phases follow each other and lie within their call."""
    edges = [span.start, *(edge for one in below for edge in (one.start, one.end)), span.end]
    assert edges == sorted(edges)


def test_the_span_of_a_call_is_a_child_of_its_callers(server: Server, collector: Collector) -> None:
    headers = caller(tracestate="vendor=1")
    answer = call(server, VARIABLES, "TRACEPARENT", "TRACESTATE", headers=headers)
    span, phases = spans_of(collector, answer)
    assert (span.name, span.kind) == ("f", Span.SPAN_KIND_SERVER)
    assert (span.trace_id, span.parent, span.failed) == (TRACE, PARENT, False)
    assert answer["json_result"] == [f"00-{TRACE}-{span.span_id}-01", "vendor=1"]
    assert "run" in [one.name for one in phases]
    assert {one.name for one in phases} <= {"queue", "start", "run", "exit"}
    assert_within(span, phases)
    (run,) = [one for one in phases if one.name == "run"]
    assert run.end - run.start == pytest.approx(answer["receipt"]["seconds"]["run"] * 1e9, abs=2e3)
    assert span.attributes["flashpool.worker.pid"] == answer["receipt"]["pid"]
    assert span.attributes["flashpool.environment"] == "base"
    assert span.resource["service.name"] == "flashpool"
    assert span.resource["deployment.environment.name"] == "test"


def test_the_collectors_headers_are_hidden_from_calls(server: Server, collector: Collector) -> None:
    answer = call(server, "def f():\n    import os\n    return dict(os.environ)")
    spans_of(collector, answer)
    assert SECRET not in json.dumps(answer["json_result"])
    assert answer["json_result"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == collector.url
    names = {name.lower(): value for name, value in collector.headers[-1].items()}
    assert names["authorization"] == SECRET


@pytest.mark.parametrize("headers", [{}, {"traceparent": "nonsense"}, caller("0" * 32)])
def test_without_a_caller_s_trace_a_new_one_begins(
    server: Server, collector: Collector, headers: dict[str, str]
) -> None:
    answer = call(server, VARIABLES, "TRACEPARENT", headers=headers)
    span, _ = spans_of(collector, answer)
    assert span.parent == ""
    # Flags: sampled and, in newer versions of the SDK, random trace id.
    place = re.escape(f"00-{span.trace_id}-{span.span_id}-")
    assert re.fullmatch(f"{place}0[13]", answer["json_result"][0])


def test_a_request_field_may_carry_the_trace_context(server: Server, collector: Collector) -> None:
    trace = "1" * 32
    answer = call(server, VARIABLES, "TRACESTATE", **caller(trace, tracestate="a=1"))
    span, _ = spans_of(collector, answer)
    assert (span.trace_id, span.parent, answer["json_result"]) == (trace, PARENT, ["a=1"])
    answer = call(server, VARIABLES, headers=caller(), **caller(trace))
    assert spans_of(collector, answer)[0].trace_id == TRACE, "a header is nearer than a field"


def test_unsampled_calls_are_not_exported(server: Server, collector: Collector) -> None:
    trace = "2" * 32
    answer = call(server, VARIABLES, "TRACEPARENT", headers=caller(trace, "00"))
    (place,) = answer["json_result"]
    assert place.startswith(f"00-{trace}-")
    assert place.endswith("-00")
    spans_of(collector, call(server, VARIABLES))
    assert collector.of_trace(trace) == []


def test_spans_of_errors_do_not_contain_messages(server: Server, collector: Collector) -> None:
    trace = "3" * 32
    code = "def f():\n    raise KeyError('a secret')"
    answer = call(server, code, headers=caller(trace))
    span, phases = spans_of(collector, answer)
    assert (span.failed, span.status_text) == (True, "")
    assert span.events == [("exception", {"exception.type": "KeyError"})]
    assert span.attributes["error.type"] == "KeyError"
    assert [one.name for one in phases if one.failed] == ["run"]
    assert "secret" not in str([span, *phases])
    until(lambda: trace in server.log())
    lines = [json.loads(line) for line in server.log().splitlines() if line[:1] == "{"]
    (line,) = [one for one in lines if one["trace"] == trace]
    assert (line["call"], "KeyError" in line["message"]) == (answer["receipt"]["call_id"], True)


def test_spans_of_calls_ended_by_the_pool_have_the_cause(
    server: Server, collector: Collector
) -> None:
    code = "def f():\n    import time\n    time.sleep(60)"
    span, phases = spans_of(collector, call(server, code, timeout_s=0.2))
    assert span.attributes["error.type"] == "Timeout"
    assert [one.name for one in phases if one.failed] == ["run"]
    answer = call(server, "def f():\n    import os\n    os._exit(3)")
    assert spans_of(collector, answer)[0].attributes["error.type"] == "WorkerCrashed"


def test_traced_calls_find_their_imports_preloaded(server: Server, collector: Collector) -> None:
    """A variable that differs from call to call is no reason to do without preloading."""
    code = (
        "def f():\n    import json, email.mime.text, xml.dom.minidom, unittest.mock\n    return 1"
    )

    def preloaded() -> bool:
        answer = call(server, code, headers=caller("4" * 32))
        assert answer["json_result"] == 1, report(answer)
        return bool(answer["receipt"]["preloaded"])

    until(preloaded, 60)


def test_each_call_of_an_instance_has_its_own_span(server: Server, collector: Collector) -> None:
    code = """class C:
    def where(self):
        import os
        return os.environ.get("TRACEPARENT")"""
    body = {
        "execution_type": "class",
        "class_name": "C",
        "class_code": code,
        "instance_id": "traced",
        "serialization_format": "json",
        "method_name": "where",
    }
    for trace in ("5" * 32, "6" * 32):
        answer = server.http.post("/execute", json=body, headers=caller(trace)).json()
        span, _ = spans_of(collector, answer)
        assert answer["json_result"] == f"00-{trace}-{span.span_id}-01", report(answer)


def test_metrics_have_exemplars(server: Server, collector: Collector) -> None:
    spans_of(collector, call(server, VARIABLES, headers=caller("7" * 32)))
    accept = {"accept": "application/openmetrics-text; version=1.0.0"}
    text = httpx.get(f"{server.admin}/metrics", headers=accept, trust_env=False).text
    (family,) = [
        one
        for one in text_string_to_metric_families(text)
        if one.name == "flashpool_call_phase_seconds"
    ]
    found = {
        sample.labels["phase"]: sample.exemplar for sample in family.samples if sample.exemplar
    }
    assert {"queue", "start", "run", "total"} <= set(found)
    known = {one.trace_id for one in collector.spans}
    assert {one.labels["trace_id"] for one in found.values()} <= known


def test_the_spans_of_a_call_with_a_build_form_one_tree(tmp_path: Path) -> None:
    world = World(tmp_path)
    with collecting() as collector, world.server(**tracing(collector)) as server:
        body = request(VERSION, dependencies=["alpha==1.0"])
        answer = server.http.post("/execute", json=body, headers=caller()).json()
        assert answer["receipt"]["environment_origin"] == "built", report(answer)
        span, phases = spans_of(collector, answer)
        assert (span.trace_id, span.parent) == (TRACE, PARENT)
        names = [one.name for one in phases]
        assert names[:1] == ["resolve"]
        assert names.index("build") < names.index("start") < names.index("run")
        assert_within(span, phases)
        assert span.attributes["flashpool.environment"] == answer["receipt"]["environment"]
        failed = server.execute(VERSION, dependencies=["alpha==7"])
        span, phases = spans_of(collector, failed)
        assert span.attributes["error.type"] == "EnvironmentError"
        assert [one.name for one in phases if one.failed] == ["resolve"]
        assert len(collector.of_trace(TRACE)) == 1 + len(names), "nothing else is in the trace"


def test_the_span_of_a_job_is_a_child_of_its_callers(tmp_path: Path) -> None:
    with collecting() as collector, Platform() as platform:
        with working(tmp_path, platform, **tracing(collector)) as worker:
            job = platform.submit(request(VARIABLES, "TRACEPARENT", **caller()))
            record = platform.wait(job)
            span, _ = until(lambda: collector.of_call(record.output["receipt"]["call_id"]))
            assert worker.running
        assert (span.trace_id, span.parent) == (TRACE, PARENT)
        assert value(record) == [f"00-{TRACE}-{span.span_id}-01"]
        assert span.attributes["flashpool.request.id"] == record.id


def test_the_last_spans_are_exported_at_the_stop(tmp_path: Path) -> None:
    with collecting() as collector:
        variables = {**tracing(collector), "OTEL_BSP_SCHEDULE_DELAY": "600000"}
        with serving(tmp_path, **variables) as server:
            answer = call(server, VARIABLES)
            assert collector.spans == []
            assert server.stop() == 0
        assert collector.of_call(answer["receipt"]["call_id"])


def test_a_server_works_without_its_collector(tmp_path: Path) -> None:
    variables = {
        "FLASHPOOL_TELEMETRY": "yes",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    with serving(tmp_path, **variables) as server:
        assert call(server, "def f(): return 1")["json_result"] == 1
        until(lambda: "encountered while exporting span" in server.log())
        assert call(server, "def f(): return 2")["json_result"] == 2
        assert server.stop() == 0


def test_without_telemetry_nothing_is_traced_or_imported(tmp_path: Path) -> None:
    with collecting() as collector:
        variables = {**tracing(collector), "FLASHPOOL_TELEMETRY": "no"}
        with serving(tmp_path, **variables) as server:
            answer = call(server, VARIABLES, "TRACEPARENT", headers=caller())
            assert answer["json_result"] == [None]
            maps = Path(f"/proc/{server.process.pid}/maps").read_text()
            assert "google/_upb" not in maps, "protobuf is there where spans are exported"
        assert collector.spans == []
