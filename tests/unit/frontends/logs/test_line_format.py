import io
import json
import logging
import sys

import pytest

from flashpool.frontends.logs import line_format
from flashpool.frontends.logs.calls import OutputLines
from flashpool.pool.calls import Call, Codec
from flashpool.pool.trace_context import TraceContext


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def record(level: int = logging.WARNING, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("flashpool.x", level, __file__, 1, "went %s\nodd", ("wrong",), None)
    for name, value in extra.items():
        setattr(made, name, value)
    return made


def test_json_lines_always_have_the_same_fields() -> None:
    form = line_format.formatter("json", sys.stderr)
    bare = json.loads(form.format(record()))
    full = json.loads(form.format(record(**line_format.of_call("a-1", "mine", "t1"))))
    assert bare.keys() == full.keys()
    assert (bare["call"], full["call"], full["request_id"], full["trace"]) == (
        None,
        "a-1",
        "mine",
        "t1",
    )
    assert (bare["message"], bare["level"]) == ("went wrong\nodd", "WARNING")
    assert bare["pod"]


def test_a_traceback_stays_in_the_line_of_its_record() -> None:
    try:
        raise ValueError("\u2028")
    except ValueError:
        made = record()
        made.exc_info = sys.exc_info()
    for form in ("json", "runpod"):
        text = line_format.formatter(form, sys.stderr).format(made)
        assert len(text.splitlines()) == 1
        assert "ValueError" in text


def test_only_terminals_get_colours_and_no_color_disables_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("RUNPOD_POD_ID", raising=False)
    assert "\x1b[" in line_format.formatter("text", Terminal()).format(record())
    assert "\x1b[" not in line_format.formatter("text", io.StringIO()).format(record())
    monkeypatch.setenv("NO_COLOR", "1")
    plain = line_format.formatter("text", Terminal()).format(record(call="a-1"))
    assert "\x1b[" not in plain
    assert plain.endswith("went wrong\n    odd [call a-1]")


def test_the_auto_format_is_the_platforms_only_for_queue_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RUNPOD_ENDPOINT_ID", "e")
    line = line_format.formatter("auto", sys.stderr, queue=True).format(record(request_id="job"))
    assert json.loads(line) == {"requestId": "job", "message": "went wrong\nodd", "level": "WARN"}
    assert isinstance(line_format.formatter("auto", sys.stderr), line_format.TextFormatter)


def test_logged_output_is_rate_limited(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "flashpool.output")
    trace = TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    lines = OutputLines(Call(codec=Codec.FLASH, body=b"", label="f", trace=trace), "a-1", 10)
    lines.feed(b"one\ntwo")
    lines.feed(b"!\n" + b"x" * 100 + b"\n")
    lines.close()
    assert [one.getMessage() for one in caplog.records][:2] == ["f| one", "f| two!"]
    assert "100 bytes of its output are not shown" in caplog.records[2].getMessage()
    assert {one.call for one in caplog.records} == {"a-1"}  # type: ignore[attr-defined]
    assert {one.trace for one in caplog.records} == {trace.trace_id}  # type: ignore[attr-defined]
