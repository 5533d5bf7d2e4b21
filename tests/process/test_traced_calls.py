"""Traced calls find their trace context in environment variables; nothing else changes for them."""

from pathlib import Path
from typing import Any

import pytest
from process.resident_calls import begin, result, run, thing, value

from flashpool.pool.trace_context import TraceContext
from support.live import WORKER_ENV, Live
from support.live import value as value_of

WHERE = "import os\n    return [os.environ.get(name) for name in ('TRACEPARENT', 'TRACESTATE')]"
SELF_WHERE = f"def where(self):\n    {WHERE}"


def place(number: int, state: str = "") -> TraceContext:
    return TraceContext(f"00-{number:032x}-{number:016x}-01", state)


@pytest.fixture
def readers(make_live: Any, tmp_path: Path) -> Live:
    """A pool whose calls may import modules that read variables."""
    heavy = "PAYLOAD = list(range(1000))\nimport os\n"
    (tmp_path / "copied.py").write_text(f"{heavy}COPY = dict(os.environ)\n")
    (tmp_path / "placed.py").write_text(f"{heavy}PLACE = os.environ.get('TRACEPARENT')\n")
    live: Live = make_live(extra_path=(str(tmp_path),), worker_env=WORKER_ENV)
    return live.ready()


def outcomes(live: Live, code: str) -> list[Any]:
    """Outcomes of a first call, and of later calls after the preloading is decided."""
    found = [live.call(code, call={"trace": place(1)})]
    live.until(lambda: all(one.state == "ready" for one in live.stats().zygotes))
    return [*found, *(live.call(code, call={"trace": place(number)}) for number in range(2, 5))]


def test_a_call_has_its_trace_context(live: Live) -> None:
    code = f"def f():\n    {WHERE}"
    for one, more in ((place(1), None), (place(2, "a=1"), "a=1")):
        found = value_of(live.call(code, call={"trace": one}))
        assert found == [one.traceparent, more]
    assert value_of(live.call(code)) == [None, None]
    own = {"trace": place(3), "env": {"TRACEPARENT": "mine"}}
    assert value_of(live.call(code, call=own))[0] == "mine", "what a request sets counts more"


def test_a_trace_context_does_not_count_as_a_change(readers: Live) -> None:
    found = outcomes(readers, "def f():\n    import copied\n    return len(copied.PAYLOAD)")
    assert [value_of(one) for one in found] == [1000] * 4
    assert found[-1].receipt.preloaded
    assert not any(one.warnings for one in found)


def test_a_module_that_reads_the_trace_context_is_not_preloaded(readers: Live) -> None:
    found = outcomes(readers, "def f():\n    import placed\n    return placed.PLACE")
    assert [value_of(one) for one in found] == [place(number).traceparent for number in range(1, 5)]


def test_each_call_of_an_instance_has_its_own_trace_context(live: Live) -> None:
    code = thing(SELF_WHERE)
    for number in (1, 2):
        one = place(number)
        found = value(run(live, "a", "where", code=code, call={"trace": one}))
        assert found == [one.traceparent, None]
    assert result(live, "a", "where", code=code) == [None, None], "nothing is left of it"
    fails = thing(SELF_WHERE, "def fail(self):\n    raise KeyError")
    assert run(live, "b", "fail", code=fails, call={"trace": place(3)}).error_type == "KeyError"
    assert result(live, "b", "where", code=fails) == [None, None]


def test_overlapping_calls_have_no_trace_context(live: Live) -> None:
    code = thing(f"async {SELF_WHERE}")
    want = {"concurrency": 4}
    result(live, "a", "inc", code=code, want=want)
    calls = [
        begin(live, "a", "where", code=code, want=want, call={"trace": place(one)})
        for one in (1, 2)
    ]
    assert [value(one.wait()) for one in calls] == [[None, None]] * 2
