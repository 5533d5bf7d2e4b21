"""Reading jobs, the lines of the log, and modes: parts of the queue that need no process."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from flashpool.frontends import modes
from flashpool.frontends.qb.jobs import Job, NoJobs, decode, of_value
from flashpool.frontends.qb.log_lines import LINE_LIMIT, LiveLines

# -- Jobs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "jobs"),
    [
        (b'{"id":"a","input":{"x":1},"webhook":"w"}', [Job(id="a", input=b'{"x":1}')]),
        (b'{"id":7,"input":[]}', [Job(id="7", input=b"[]")]),
        (b'[{"id":"a","input":1},{"id":"b","input":2}]',
         [Job(id="a", input=b"1"), Job(id="b", input=b"2")]),
        (b'{"id":"a","input":0,"policy":{"executionTimeout":1500}}',
         [Job(id="a", input=b"0", limit_s=1.5)]),
        (b"[]", []),
    ],
)  # fmt: skip
def test_jobs_are_read(body: bytes, jobs: list[Job]) -> None:
    assert decode(body) == jobs


@pytest.mark.parametrize(
    "policy", [b'"x"', b"null", b"[]", b'{"executionTimeout":"5"}', b'{"executionTimeout":-1}',
               b'{"executionTimeout":true}', b'{"executionTimeout":1e300}', b'{"x":"\xff"}',
               b'{"x":' * 100_000 + b"1" + b"}" * 100_000],
    ids=lambda policy: repr(policy)[:30],
)  # fmt: skip
def test_a_policy_that_is_none_is_not_said(policy: bytes) -> None:
    (job,) = decode(b'{"id":"a","input":1,"policy":%s}' % policy)
    assert job == Job(id="a", input=b"1")


def test_what_has_no_input_keeps_its_id_and_its_neighbours() -> None:
    body = b'[{"id":"a"},{"id":"b","input":null},{"id":"c","input":{"x":1}}]'
    found = decode(body)
    assert [(job.id, job.input is None, bool(job.problem)) for job in found] == [
        ("a", True, True), ("b", True, True), ("c", False, False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "poison",
    [b"NaN", b'"\\ud800"', b'{"x":["\\ud800, ]}"]}', b'"a\nb"', b"[" * 100_000 + b"]" * 100_000,
     b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b"what", b'"\xff"', b'"\\\\"'],
    ids=lambda poison: repr(poison)[:20],
)  # fmt: skip
@pytest.mark.parametrize("around", [b'{"id": "a","input": %s ,"policy":{"executionTimeout":9}}',
                                    b'{"input":%s,"policy":{"executionTimeout":9},"id":"a"}'])  # fmt: skip
def test_a_job_that_no_decoder_takes_keeps_its_id_and_its_neighbours(
    poison: bytes, around: bytes
) -> None:
    fine = b'{"id":"z","input":[1, {"y":"]"}]}'
    poisoned = Job(id="a", input=poison, limit_s=0.009)
    assert decode(around % poison) == [poisoned]
    assert decode(b"[%s , %s]" % (around % poison, fine)) == [
        poisoned,
        Job(id="z", input=b'[1, {"y":"]"}]'),
    ]


def test_what_has_no_id_is_left_out() -> None:
    assert decode(b'[5,null,{"input":1},{"id":null},{"id":[],"input":1}]') == []
    assert decode(b'[{"id":"\\ud800","input":1}, {"id":"%s","input":1}]' % (b"x" * 1001)) == []


@pytest.mark.parametrize(
    "body", [b'{"id": "x", ', b"<html>", b"\xff", b"{" * 100_000, b'{"id":"x"} {', b"]"]
)
def test_an_answer_that_is_no_json(body: bytes) -> None:
    with pytest.raises(NoJobs):
        decode(body)


def test_a_job_that_refers_to_itself() -> None:
    job: dict[str, Any] = {"id": "a", "input": {}}
    job["input"]["self"] = job
    found = of_value(job)
    assert found is not None
    assert found.input is None
    assert "Circular" in found.problem


def test_the_load_balanced_server_never_imports_the_sdk() -> None:
    code = """import sys
from flashpool.frontends.cli import main
from flashpool.frontends.lb import app, hosted, server
from flashpool.frontends.qb import entry
sys.exit('runpod' in sys.modules)"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- Lines of the log ---------------------------------------------------------------------


Show = Callable[..., list[str]]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Show:
    """The messages of a job that writes these chunks."""

    def show(*chunks: bytes, limit: int = 10_000) -> list[str]:
        lines = LiveLines("job", limit)
        for chunk in chunks:
            lines.feed(chunk)
        lines.close()
        entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert {entry["requestId"] for entry in entries} <= {"job"}
        return [entry["message"] for entry in entries]

    return show


def test_lines_are_whole_whatever_the_chunks(shown: Show) -> None:
    assert shown(b"one\ntw", b"o\n\nthr", b"ee") == ["one", "two", "three"]
    assert shown("ä\r\n\u2028x\n".encode(), b"\xff\n") == ["ä", "\u2028x", "\ufffd"]


def test_lines_and_their_number_are_bounded(shown: Show) -> None:
    pieces = shown(b"x" * (2 * LINE_LIMIT + 5))
    assert [len(piece) for piece in pieces] == [LINE_LIMIT, LINE_LIMIT, 5]
    flood = shown(*[b"line\n"] * 100, limit=12)
    assert flood == ["line", "line", "li", "[its further output is not shown here]"]


# -- Modes --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["FLASH_RESOURCE_NAME", "RUNPOD_RESOURCE_NAME"])
def test_a_named_resource_is_deployed_whatever_else_is_set(name: str) -> None:
    for value in ("x", " ", "0", "no"):
        assert modes.of_queue({name: value}) is modes.Mode.DEPLOYED_QUEUE
        for kind in ({}, {"FLASH_ENDPOINT_TYPE": ""}, {"FLASH_ENDPOINT_TYPE": "lb"}):
            assert modes.of_balanced({name: value, **kind}) is modes.Mode.DEPLOYED_BALANCED
    assert modes.of_queue({name: ""}) is modes.Mode.LIVE_QUEUE
    assert modes.of_balanced({name: "", "FLASH_ENDPOINT_TYPE": ""}) is modes.Mode.LIVE_BALANCED


def test_modes_that_no_variable_asks_for_are_live() -> None:
    assert modes.of_queue({}) is modes.Mode.LIVE_QUEUE
    assert modes.of_balanced({}) is modes.Mode.LIVE_BALANCED


@pytest.mark.parametrize("kind", ["lb", "other", " lb"])
@pytest.mark.parametrize("resource", [{}, {"FLASH_RESOURCE_NAME": "x"}], ids=["alone", "named"])
def test_a_kind_of_endpoint_alone_is_never_live(kind: str, resource: dict[str, str]) -> None:
    environ = {"FLASH_ENDPOINT_TYPE": kind, **resource}
    if kind == "lb" and resource:
        with pytest.raises(modes.ModeError, match="load-balanced image"):
            modes.of_queue(environ)
    else:
        with pytest.raises(modes.ModeError, match="unset"):
            modes.of_balanced(environ)


def test_a_refusal_names_what_is_set_and_what_to_do() -> None:
    environ = {"FLASH_RESOURCE_NAME": "", "RUNPOD_RESOURCE_NAME": " x", "FLASH_ENDPOINT_TYPE": "lb"}
    with pytest.raises(modes.ModeError) as caught:
        modes.check_live(modes.of_balanced(environ), environ)
    said = str(caught.value)
    assert "RUNPOD_RESOURCE_NAME=' x'" in said
    assert "'deployed load-balanced' does not exist yet" in said
    assert said.endswith("unset RUNPOD_RESOURCE_NAME and FLASH_ENDPOINT_TYPE")
    for mode in (modes.Mode.LIVE_QUEUE, modes.Mode.LIVE_BALANCED):
        modes.check_live(mode, environ)
