"""The plainest worker there can be, under the real SDK: what the stand-in is tried with.

Its input is a FunctionRequest, run right here (instances are kept), or one of
    {"sleep": seconds}  {"echo": value}  {"stream": n}  {"progress": n}  {"fail": text}
    {"refresh": true}: wants to be stopped afterwards

Its concurrency is PLAIN_CONCURRENCY; with PLAIN_STREAM, it is a generator. Arguments are the SDK's.
"""

import asyncio
import base64
import contextlib
import inspect
import io
import os
import traceback

import cloudpickle
import runpod

CONCURRENCY = int(os.environ.get("PLAIN_CONCURRENCY", "1"))
STREAMS = "PLAIN_STREAM" in os.environ
INSTANCES = {}


async def work(job):
    given = job["input"]
    if "sleep" in given:
        await asyncio.sleep(given["sleep"])
    for step in range(given.get("progress", 0)):
        runpod.serverless.progress_update(job, step)
    if "fail" in given:
        raise ValueError(given["fail"])
    if "function_code" in given or "class_code" in given:
        return await flash(given)
    return {"echo": given.get("echo"), "refresh_worker": given.get("refresh")}


async def flash(request):
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            value = find(request)(
                *map(loads, request.get("args", [])),
                **{k: loads(v) for k, v in request.get("kwargs", {}).items()},
            )
            if inspect.isawaitable(value):
                value = await value
    except Exception:
        return {"success": False, "error": traceback.format_exc(), "stdout": out.getvalue()}
    result = base64.b64encode(cloudpickle.dumps(value)).decode()
    return {"success": True, "result": result, "stdout": out.getvalue()}


def find(request):
    names = {}
    if request.get("execution_type") != "class":
        exec(request["function_code"], names)
        return names[request["function_name"]]
    key = request["instance_id"]
    if key not in INSTANCES:
        exec(request["class_code"], names)
        made = names[request["class_name"]]
        INSTANCES[key] = made(*map(loads, request.get("constructor_args", [])))
    return getattr(INSTANCES[key], request["method_name"])


def loads(text):
    return cloudpickle.loads(base64.b64decode(text))


async def stream(job):
    for number in range(job["input"]["stream"]):
        yield {"item": number}


runpod.serverless.start(
    {
        "handler": stream if STREAMS else work,
        "concurrency_modifier": lambda now: CONCURRENCY,
        "return_aggregate_stream": STREAMS,
    }
)
