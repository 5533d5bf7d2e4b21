"""The stand-in's client side and control plane, over HTTP, with the test itself as the worker."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from support.cloud import ENDPOINT, Fault, Platform, Status

#: Headers of the SDK's posts.
POSTED = {"Content-Type": "application/x-www-form-urlencoded", "charset": "utf-8"}


class Caller:
    """A client and a worker that send plain HTTP requests."""

    def __init__(self, platform: Platform) -> None:
        keys = platform.client_env()["RUNPOD_API_KEY"], platform.worker_env()["RUNPOD_AI_API_KEY"]
        base = platform.urls().base
        self.http = httpx.Client(
            base_url=base, headers={"Authorization": f"Bearer {keys[0]}"}, trust_env=False
        )
        self.worker = httpx.Client(
            base_url=base, headers={"Authorization": keys[1]}, trust_env=False
        )

    def post(self, path: str, body: Any = None, **more: Any) -> httpx.Response:
        return self.http.post(f"/v2/{ENDPOINT}/{path}", json=body, **more)

    def get(self, path: str) -> Any:
        return self.http.get(f"/v2/{ENDPOINT}/{path}").json()

    def run(self, input: Any, **more: Any) -> str:
        job: str = self.post("run", {"input": input, **more}).json()["id"]
        return job

    def take(self, worker: str = "w1") -> httpx.Response:
        return self.worker.get(f"/v2/{ENDPOINT}/job-take/{worker}?gpu=none&job_in_progress=0")

    def tell(self, verb: str, job: str, body: Any, worker: str = "w1") -> httpx.Response:
        path = f"/v2/{ENDPOINT}/{verb}/{worker}/{job}?isStream=false"
        body = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
        return self.worker.post(path, content=body, headers=POSTED)

    def graphql(self, query: str, **variables: Any) -> Any:
        answer = self.http.post("/graphql", json={"query": query, "variables": variables})
        return answer.json()["data"]

    def close(self) -> None:
        self.http.close()
        self.worker.close()


@pytest.fixture
def platform() -> Iterator[Platform]:
    with Platform(poll_s=0.05, sync_wait_s=0.2) as platform:
        yield platform


@pytest.fixture
def caller(platform: Platform) -> Iterator[Caller]:
    caller = Caller(platform)
    yield caller
    caller.close()


def test_a_job_from_run_to_its_result(caller: Caller) -> None:
    job = caller.run({"n": 1}, policy={"executionTimeout": 5000})
    assert caller.get(f"status/{job}") == {"id": job, "status": "IN_QUEUE"}
    assert caller.take().json() == {
        "id": job,
        "input": {"n": 1},
        "policy": {"executionTimeout": 5000},
    }
    caller.tell("job-done", job, {"status": "IN_PROGRESS", "output": "half"})
    running = caller.get(f"status/{job}")
    assert (running["status"], running["workerId"], running["output"]) == (
        "IN_PROGRESS",
        "w1",
        "half",
    )
    caller.tell("job-done", job, {"output": {"n": 2}})
    done = caller.get(f"status/{job}")
    assert (done["status"], done["output"]) == ("COMPLETED", {"n": 2})
    assert {type(done["delayTime"]), type(done["executionTime"])} == {int}
    assert caller.take().status_code == 204


def test_a_job_fails_with_an_error_and_can_be_retried(caller: Caller) -> None:
    job = caller.run(1)
    caller.take()
    caller.tell("job-done", job, {"output": {"stdout": "x"}, "error": "no luck"})
    failed = caller.get(f"status/{job}")
    assert (failed["status"], failed["error"]) == ("FAILED", "no luck")
    assert failed["output"] == {"stdout": "x"}
    assert caller.post(f"retry/{job}").json() == {"id": job, "status": "IN_QUEUE"}
    assert caller.take().json()["id"] == job
    assert caller.post(f"retry/{job}").status_code == 400


def test_runsync_waits_for_the_result_up_to_its_limit(caller: Caller) -> None:
    assert caller.post("runsync", {"input": 1}).json()["status"] == "IN_QUEUE"
    answers: list[Any] = []
    waiting = threading.Thread(
        target=lambda: answers.append(caller.post("runsync?wait=5000", {"input": 2}).json())
    )
    waiting.start()
    job = ""
    while not job.endswith("-2"):
        taken = caller.take()
        job = taken.json()["id"] if taken.status_code == 200 else ""
    caller.tell("job-done", job, {"output": 3})
    waiting.join()
    assert (answers[0]["status"], answers[0]["output"]) == ("COMPLETED", 3)


def test_the_stream_is_read_once(caller: Caller) -> None:
    job = caller.run(1)
    caller.take()
    for n in range(3):
        caller.tell("job-stream", job, {"output": n})
    chunks = [{"output": n} for n in range(3)]
    assert caller.get(f"stream/{job}") == {"status": "IN_PROGRESS", "stream": chunks}
    caller.tell("job-done", job, {"output": []})
    assert caller.get(f"stream/{job}") == {"status": "COMPLETED", "stream": []}


def test_oversized_inputs_and_results_are_refused(platform: Platform, caller: Caller) -> None:
    megabyte = 1_000_000
    assert caller.post("run", {"input": "x" * (10 * megabyte)}).status_code == 413
    assert caller.post("runsync", {"input": "x" * (20 * megabyte)}).status_code == 413
    job = caller.run(1)
    caller.take()
    assert caller.tell("job-stream", job, {"output": "x" * megabyte}).status_code == 413
    assert caller.tell("job-done", job, {"output": "x" * (10 * megabyte)}).status_code == 413
    assert platform.job(job).done_count == 0
    synced = platform.submit(1, sync=True)
    assert caller.tell("job-done", synced, {"output": "x" * (11 * megabyte)}).status_code == 200


def test_purging_keeps_running_jobs(platform: Platform, caller: Caller) -> None:
    running = caller.run(1)
    caller.take()
    waiting = [caller.run(2), caller.run(3)]
    assert caller.post("purge-queue").json() == {"removed": 2, "status": "completed"}
    assert {platform.job(job).status for job in waiting} == {Status.CANCELLED}
    assert platform.job(running).status is Status.IN_PROGRESS
    assert caller.get("health")["jobs"]["inProgress"] == 1
    assert [one["id"] for one in caller.get("requests")["requests"]] == [running, *waiting]


def test_the_worker_of_a_cancelled_job_is_told(platform: Platform, caller: Caller) -> None:
    job = caller.run(1)
    caller.take("w7")
    assert caller.post(f"cancel/{job}").json() == {"id": job, "status": "CANCELLED"}
    stop = f"/v2/{ENDPOINT}/job-stop/"
    assert caller.worker.get(stop + "w6").status_code == 204
    assert caller.worker.get(stop + "w7").json() == {"jobsToStop": [job]}
    assert caller.worker.get(stop + "w7").status_code == 204
    caller.tell("job-done", job, {"output": 1})
    assert platform.job(job).status is Status.CANCELLED
    assert [done.counted for done in platform.job(job).dones] == [False]


def test_workers_show_in_health_and_metrics(caller: Caller) -> None:
    caller.run(1)
    caller.take("w1")
    caller.take("w2")
    metrics = caller.get("metrics")
    assert metrics["readyWorkers"] == ["w1", "w2"]
    assert (metrics["workers"]["running"], metrics["workers"]["idle"]) == (1, 1)


def test_requests_with_a_wrong_key_are_refused(platform: Platform, caller: Caller) -> None:
    path = f"{platform.urls().data}/{ENDPOINT}/"
    assert httpx.get(path + "health", trust_env=False).status_code == 401
    assert caller.http.get(f"/v2/{ENDPOINT}/job-take/w1").status_code == 401
    assert caller.http.get("/v2/other/health").status_code == 404
    assert caller.get("status/nobody") == {"error": "no such job"}
    assert caller.post("run", {"in": 1}).status_code == 400


@pytest.mark.parametrize(
    "body", [b'{"output":NaN}', b'{"output":-Infinity}', b'{"output":"\xff"}', b"[]", b"", b"{]",
             '{"output":1}'.encode("utf-16"), b'{"output":' + b"[" * 100_000],
    ids=lambda body: repr(body)[:20],
)  # fmt: skip
def test_invalid_json_is_refused(platform: Platform, caller: Caller, body: bytes) -> None:
    job = platform.submit(1)
    for verb in ("job-done", "job-stream"):
        assert caller.tell(verb, job, body).status_code == 400
    assert platform.job(job).done_count == 0
    assert caller.http.post(f"/v2/{ENDPOINT}/run", content=body).status_code == 400


def test_requests_that_no_sdk_sends_are_refused(platform: Platform, caller: Caller) -> None:
    job = platform.submit(1)
    at, post = f"/v2/{ENDPOINT}/", caller.worker.post
    done, body = f"{at}job-done/w1/{job}", b'{"output":1}'
    statuses = [
        post(f"{done}?isStream=true", json={"output": 1}).status_code,
        post(done, content=body, headers=POSTED).status_code,
        post(f"{done}?isStream=no", content=body, headers=POSTED).status_code,
        caller.tell("job-done", job, body, worker="$RUNPOD_POD_ID").status_code,
        caller.tell("job-stream", job, {"outputs": 1}).status_code,
        caller.worker.get(at + "job-take/w1?gpu=none").status_code,
        caller.worker.get(at + "job-take/$ID?job_in_progress=0").status_code,
        caller.worker.get(at + "job-take-batch/w1?job_in_progress=0").status_code,
        caller.worker.get(at + "job-take-batch/w1?job_in_progress=0&batch_size=1").status_code,
    ]
    assert statuses == [415, 400, 400, 400, 400, 400, 400, 400, 400]
    assert platform.job(job).status is Status.IN_QUEUE


def test_faults_hit_the_requests_they_are_scripted_for(platform: Platform, caller: Caller) -> None:
    jobs = [caller.run(n) for n in range(3)]
    platform.script(
        Fault.answers("job-done", 500, job=jobs[1], times=2),
        Fault.answers("job-take", 429, skip=1),
    )
    statuses = [caller.take().status_code for _ in range(4)]
    assert statuses == [200, 429, 200, 200]
    done = [caller.tell("job-done", job, {"output": 1}).status_code for job in jobs * 3]
    assert done == [200, 500, 200, 200, 500, 200, 200, 200, 200]
    refused = platform.exchanges("job-done", job=jobs[1])[0]
    assert (refused.status, refused.body) == (500, b'{"output":1}')


def test_a_fault_with_a_duration_ends_after_it(platform: Platform, caller: Caller) -> None:
    began = time.monotonic()
    platform.script(Fault.answers("run", 503, for_s=1.0))
    first = caller.post("run", {"input": 1}).status_code
    while (last := caller.post("run", {"input": 1}).status_code) == 503:
        pass
    assert (first, last) == (503, 200)
    # The request may have arrived while the fault was still in force.
    answered_at = platform.exchanges("run")[-1].answered_at
    assert answered_at is not None
    assert answered_at - began >= 1.0


def test_cut_and_hung_requests_have_no_answer(platform: Platform, caller: Caller) -> None:
    platform.script(Fault.cuts("run"), Fault.hangs("run"))
    with pytest.raises(httpx.TransportError):
        caller.post("run", {"input": 1})
    with pytest.raises(httpx.ReadTimeout):
        caller.post("run", {"input": 1}, timeout=0.5)
    platform.until(lambda: [one.status for one in platform.exchanges("run")] == [None, None])
    assert caller.post("run", {"input": 1}).status_code == 200
    assert len(platform.jobs()) == 1


def test_the_control_plane_keeps_endpoints(platform: Platform, caller: Caller) -> None:
    template = {"name": "t", "imageName": "i", "env": [{"key": "A", "value": "1"}]}
    saved = caller.graphql(
        "mutation saveEndpoint($input: EndpointInput!) { saveEndpoint(input: $input) { id } }",
        input={"name": "live-x", "template": template, "workersMax": 2},
    )["saveEndpoint"]
    assert (saved["name"], saved["workersMax"]) == ("live-x", 2)
    kept = caller.graphql(
        "query ($id: String!) { podTemplate(id: $id) { env { key } } }", id=saved["templateId"]
    )["podTemplate"]
    assert kept["env"] == template["env"]
    sentinel = caller.http.post(
        "/v2/flash/runsync", json={"input": {}}, headers={"X-Flash-Endpoint": "x"}
    )
    assert platform.job(sentinel.json()["id"]).endpoint == saved["id"]
    caller.graphql("mutation ($id: String!) { deleteEndpoint(id: $id) }", id=saved["id"])
    assert platform.endpoints() == {}


def test_the_job_of_a_silent_worker_times_out() -> None:
    with Platform(poll_s=0.05, lost_after_s=0.2) as platform:
        caller = Caller(platform)
        job = caller.run(1)
        caller.take()
        assert platform.wait(job).status is Status.TIMED_OUT
        caller.close()
