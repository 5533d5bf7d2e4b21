"""What clients ask: run, runsync, status, stream, cancel, retry, purge-queue, health, metrics,
requests, and the log of a worker's pod. The endpoint "flash" is the sentinel: it stands for the
endpoint that the header X-Flash-Endpoint names.
"""

import time
from typing import Any, Final

from aiohttp import web

from support.cloud.jobs import RUN_LIMIT, RUNSYNC_LIMIT, Job
from support.cloud.recording import json_answer, read_json, refuse, state
from support.cloud.records import Status
from support.cloud.state import Endpoint

SENTINEL: Final = "flash"
#: Fields of a client's request that reach the worker.
_HANDED_ON: Final = ("input", "policy", "webhook", "s3Config")


def add_routes(app: web.Application) -> None:
    at, router = "/v2/{endpoint}/", app.router
    router.add_post(at + "run", run, name="run")
    router.add_post(at + "runsync", runsync, name="runsync")
    router.add_get(at + "status/{job}", status, name="status")
    router.add_get(at + "stream/{job}", stream, name="stream")
    router.add_post(at + "cancel/{job}", cancel, name="cancel")
    router.add_post(at + "retry/{job}", retry, name="retry")
    router.add_post(at + "purge-queue", purge, name="purge-queue")
    router.add_get(at + "health", health, name="health")
    router.add_get(at + "metrics", metrics, name="metrics")
    router.add_get(at + "requests", requests, name="requests")
    router.add_get("/v1/pod/{worker}/logs", logs, name="logs")


async def run(request: web.Request) -> web.Response:
    job = await _submit(request, RUN_LIMIT, sync=False)
    return json_answer({"id": job.id, "status": job.status.value})


async def runsync(request: web.Request) -> web.Response:
    """Answer with the result, or with the job's status if the wait times out."""
    job = await _submit(request, RUNSYNC_LIMIT, sync=True)
    here = state(request)
    wait_s = float(request.query.get("wait", here.config.sync_wait_s * 1000)) / 1000
    await here.changes.until(lambda: job.final, wait_s)
    return json_answer(job.view())


async def _submit(request: web.Request, limit: int, *, sync: bool) -> Job:
    endpoint, body = _endpoint(request), await request.read()
    if len(body) > limit:
        refuse(413, f"a request may have {limit} bytes")
    given = read_json(body)
    if "input" not in given:
        refuse(400, "no input")
    handed_on: dict[str, Any] = {name: given[name] for name in _HANDED_ON if name in given}
    return state(request).submit(endpoint, handed_on, sync=sync)


async def status(request: web.Request) -> web.Response:
    return json_answer(_job(request).view())


async def stream(request: web.Request) -> web.Response:
    """Answer with the chunks since the last request."""
    job = _job(request)
    chunks = [{"output": output} for output in job.unread()]
    return json_answer({"status": job.status.value, "stream": chunks})


async def cancel(request: web.Request) -> web.Response:
    job = _job(request)
    state(request).cancel(job)
    return json_answer({"id": job.id, "status": job.status.value})


async def retry(request: web.Request) -> web.Response:
    job, endpoint = _job(request), _endpoint(request)
    if not endpoint.queue.retry(job):
        refuse(400, f"it is {job.status.value}")
    state(request).changes.tell()
    return json_answer({"id": job.id, "status": job.status.value})


async def purge(request: web.Request) -> web.Response:
    removed = _endpoint(request).queue.purge(time.monotonic())
    state(request).changes.tell()
    return json_answer({"removed": removed, "status": "completed"})


async def health(request: web.Request) -> web.Response:
    endpoint = _endpoint(request)
    queue = endpoint.queue
    jobs = {
        "completed": queue.count(Status.COMPLETED),
        "failed": queue.count(Status.FAILED),
        "inProgress": queue.count(Status.IN_PROGRESS),
        "inQueue": queue.count(Status.IN_QUEUE),
        "retried": sum(job.retries for job in queue.jobs.values()),
    }
    return json_answer({"jobs": jobs, "workers": _workers(request, endpoint)})


async def metrics(request: web.Request) -> web.Response:
    endpoint = _endpoint(request)
    ready = sorted(_ready(request, endpoint))
    return json_answer({"workers": _workers(request, endpoint), "readyWorkers": ready})


async def requests(request: web.Request) -> web.Response:
    jobs = [job.view() for job in _endpoint(request).queue.jobs.values()]
    return json_answer({"requests": jobs})


async def logs(request: web.Request) -> web.Response:
    _check_key(request)
    lines = state(request).pods.log(request.match_info["worker"])
    return json_answer({"container": lines, "system": []})


def _ready(request: web.Request, endpoint: Endpoint) -> set[str]:
    """Return the workers that have polled."""
    seen = state(request).seen
    return {name for name, one in list(seen.items()) if one.endpoint == endpoint.id}


def _workers(request: web.Request, endpoint: Endpoint) -> dict[str, int]:
    ready = _ready(request, endpoint)
    running = sum(bool(endpoint.queue.held_by(worker)) for worker in ready)
    return {
        "idle": len(ready) - running,
        "initializing": state(request).pods.initializing(endpoint.id, ready),
        "ready": len(ready),
        "running": running,
        "throttled": 0,
        "unhealthy": 0,
    }


def _check_key(request: web.Request) -> None:
    config = state(request).config
    keys = {f"Bearer {config.api_key}", f"Bearer {config.endpoint_key}"}
    if request.headers.get("Authorization") not in keys:
        refuse(401, "not a client's key")


def _endpoint(request: web.Request) -> Endpoint:
    _check_key(request)
    here, name = state(request), request.match_info["endpoint"]
    if name == SENTINEL:
        found = here.by_name(request.headers.get("X-Flash-Endpoint", ""))
    else:
        found = here.endpoints.get(name)
    return found or refuse(404, "no such endpoint")


def _job(request: web.Request) -> Job:
    endpoint = _endpoint(request)
    return endpoint.queue.jobs.get(request.match_info["job"]) or refuse(404, "no such job")
