"""Reading jobs from answers of the platform, even from damaged ones."""

from typing import Any

import pytest

from flashpool.frontends.qb.jobs import Job, NoJobs, decode, of_value


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
def test_jobs_are_decoded(body: bytes, jobs: list[Job]) -> None:
    assert decode(body) == jobs


@pytest.mark.parametrize(
    "policy", [b'"x"', b"null", b"[]", b'{"executionTimeout":"5"}', b'{"executionTimeout":-1}',
               b'{"executionTimeout":true}', b'{"executionTimeout":1e300}', b'{"x":"\xff"}',
               b'{"x":' * 100_000 + b"1" + b"}" * 100_000],
    ids=lambda policy: repr(policy)[:30],
)  # fmt: skip
def test_a_malformed_policy_is_ignored(policy: bytes) -> None:
    (job,) = decode(b'{"id":"a","input":1,"policy":%s}' % policy)
    assert job == Job(id="a", input=b"1")


def test_a_job_without_input_keeps_its_id_and_does_not_affect_others() -> None:
    body = b'[{"id":"a"},{"id":"b","input":null},{"id":"c","input":{"x":1}}]'
    found = decode(body)
    assert [(job.id, job.input, bool(job.problem)) for job in found] == [
        ("a", None, True), ("b", b"null", False), ("c", b'{"x":1}', False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "poison",
    [b"NaN", b'"\\ud800"', b'{"x":["\\ud800, ]}"]}', b'"a\nb"', b"[" * 100_000 + b"]" * 100_000,
     b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b"what", b'"\xff"', b'"\\\\"'],
    ids=lambda poison: repr(poison)[:20],
)  # fmt: skip
@pytest.mark.parametrize("around", [b'{"id": "a","input": %s ,"policy":{"executionTimeout":9}}',
                                    b'{"input":%s,"policy":{"executionTimeout":9},"id":"a"}'])  # fmt: skip
def test_a_job_with_malformed_input_keeps_its_id_and_does_not_affect_others(
    poison: bytes, around: bytes
) -> None:
    fine = b'{"id":"z","input":[1, {"y":"]"}]}'
    poisoned = Job(id="a", input=poison, limit_s=0.009)
    assert decode(around % poison) == [poisoned]
    assert decode(b"[%s , %s]" % (around % poison, fine)) == [
        poisoned,
        Job(id="z", input=b'[1, {"y":"]"}]'),
    ]


def test_jobs_without_a_valid_id_are_skipped() -> None:
    assert decode(b'[5,null,{"input":1},{"id":null},{"id":[],"input":1}]') == []
    assert decode(b'[{"id":"\\ud800","input":1}, {"id":"%s","input":1}]' % (b"x" * 1001)) == []


@pytest.mark.parametrize(
    "body", [b'{"id": "x", ', b"<html>", b"\xff", b"{" * 100_000, b'{"id":"x"} {', b"]"]
)
def test_an_answer_that_is_not_json_raises(body: bytes) -> None:
    with pytest.raises(NoJobs):
        decode(body)


def test_a_circular_job_has_a_problem_in_place_of_an_input() -> None:
    job: dict[str, Any] = {"id": "a", "input": {}}
    job["input"]["self"] = job
    found = of_value(job)
    assert found is not None
    assert found.input is None
    assert "Circular" in found.problem
