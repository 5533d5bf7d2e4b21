"""What workers ask: job-take, job-take-batch, job-stop, job-done, job-stream, ping.

What no SDK sends is refused: of that nobody knows what the platform makes of it.
"""

import time
from typing import Any, Final

from aiohttp import web

from support.cloud.jobs import CHUNK_LIMIT, Job
from support.cloud.recording import json_answer, read_json, refuse, state
from support.cloud.records import Chunk, Ping
from support.cloud.state import Endpoint

#: The SDK declares a form, and posts JSON.
_CONTENT_TYPE: Final = "application/x-www-form-urlencoded"


def add_routes(app: web.Application) -> None:
    at = "/v2/{endpoint}/"
    for verb in ("job-take", "job-take-batch"):
        app.router.add_get(f"{at}{verb}/{{worker}}", take, name=verb)
    app.router.add_get(at + "job-stop/{worker}", stop, name="job-stop")
    app.router.add_post(at + "job-done/{worker}/{job}", done, name="job-done")
    app.router.add_post(at + "job-stream/{worker}/{job}", stream, name="job-stream")
    app.router.add_get(at + "ping/{worker}", ping, name="ping")


async def take(request: web.Request) -> web.Response:
    """Answer a poll with jobs, or with 204 if none arrives while the poll is open."""
    endpoint = _endpoint(request)
    batch = request.match_info.route.name == "job-take-batch"
    if request.query.get("job_in_progress") not in {"0", "1"}:
        refuse(400, "job_in_progress is 0 or 1")
    most = _batch_size(request) if batch else 1
    taken = await state(request).take(endpoint, request.match_info["worker"], most)
    if request.transport is None or request.transport.is_closing():
        # The worker disconnected at that moment: no worker has the jobs.
        for job in reversed(taken):
            endpoint.queue.give_back(job)
        state(request).changes.tell()
        taken = []
    if not taken:
        return web.Response(status=204)
    payloads = [job.payload for job in taken]
    return json_answer(payloads if batch else payloads[0])


def _batch_size(request: web.Request) -> int:
    """One job is asked for with job-take."""
    size = request.query.get("batch_size", "")
    return int(size) if size.isdecimal() and int(size) > 1 else refuse(400, "no batch_size")


async def stop(request: web.Request) -> web.Response:
    jobs = await state(request).stops(_endpoint(request), request.match_info["worker"])
    return json_answer({"jobsToStop": jobs}) if jobs else web.Response(status=204)


async def done(request: web.Request) -> web.Response:
    """Accept a result or, with the status IN_PROGRESS, a progress report."""
    endpoint = _endpoint(request)
    job, body = _job(request, endpoint), await _posted(request)
    if len(await request.read()) > job.limit:
        refuse(413, f"a result may have {job.limit} bytes")
    counted = state(request).done(
        job,
        request.match_info["worker"],
        body,
        is_stream=request.query["isStream"] == "true",
    )
    if counted:
        return json_answer({})
    return json_answer({"error": "the job has ended"}, status=state(request).config.gone)


async def stream(request: web.Request) -> web.Response:
    job, body = _job(request, _endpoint(request)), await _posted(request)
    if len(await request.read()) > CHUNK_LIMIT:
        refuse(413, f"a chunk may have {CHUNK_LIMIT} bytes")
    if set(body) != {"output"}:
        refuse(400, "a chunk has an output, and nothing else")
    job.stream.append(Chunk(at=time.monotonic(), output=body.get("output")))
    state(request).changes.tell()
    return json_answer({})


async def ping(request: web.Request) -> web.Response:
    jobs = request.query.get("job_id", "")
    state(request).ping(
        _endpoint(request),
        Ping(
            at=time.monotonic(),
            worker=request.match_info["worker"],
            jobs=tuple(job for job in jobs.split(",") if job),
            query=dict(request.query),
        ),
    )
    return json_answer({})


def _endpoint(request: web.Request) -> Endpoint:
    """Return the worker's endpoint if its key is right; workers send the key without "Bearer"."""
    if request.headers.get("Authorization") != state(request).config.worker_key:
        refuse(401, "not a worker's key")
    if "$" in request.match_info["worker"]:
        refuse(400, "a worker's id was to be filled in")
    endpoint = state(request).endpoints.get(request.match_info["endpoint"])
    return endpoint or refuse(404, "no such endpoint")


def _job(request: web.Request, endpoint: Endpoint) -> Job:
    return endpoint.queue.jobs.get(request.match_info["job"]) or refuse(404, "no such job")


async def _posted(request: web.Request) -> dict[str, Any]:
    """Parse a body in the form in which the SDK posts it."""
    if request.query.get("isStream") not in {"true", "false"}:
        refuse(400, "isStream is true or false")
    if request.content_type != _CONTENT_TYPE or request.headers.get("charset") != "utf-8":
        refuse(415, f"neither {_CONTENT_TYPE} nor charset utf-8")
    return read_json(await request.read())
