"""Queue endpoints through the real client; run by the client's interpreter: RECIPE URL.

    F    live mode as its users have it: @Endpoint on functions and classes
    J    Endpoint(id=...): run, wait, cancel, runsync
    D    its stub, over the SDK's local API at URL
    E    runpod.Endpoint, over the SDK's local API at URL

Prints, last of all, one JSON object: call -> what came of it.
"""

import asyncio
import base64
import contextlib
import json
import os
import sys
from types import SimpleNamespace

import cloudpickle
import runpod
from runpod_flash import Endpoint
from runpod_flash.stubs.live_serverless import LiveServerlessStub

RECIPE, URL = sys.argv[1:]
CPU = "cpu3c-1-2"


def calls(**more):
    """All on one endpoint."""
    return Endpoint(name="calls", cpu=CPU, **more)


@calls()
def add(a, b=0):
    return a + b


@calls()
async def add_later(a, b):
    import asyncio

    await asyncio.sleep(0.01)
    return a + b


@calls()
def nothing():
    return None


@calls()
def prints(text):
    print("printed", text)
    return len(text)


@calls()
def fails(text):
    print("about to fail")
    raise ValueError(text)


@calls()
def leaves():
    import sys

    sys.exit(3)


@calls()
def dies():
    import os

    os._exit(7)


@calls()
def imports_module(value):
    import shipped

    return shipped.triple(value)


@calls(dependencies=["alpha==1.0"])
def uses_a_package():
    import alpha

    return alpha.version


@calls(dependencies=["alpha==7"])
def needs_what_is_not_there():
    pass


@Endpoint(name="inner", cpu=CPU)
async def double(value):
    return 2 * value


@calls()
async def stacked(value):
    return 1 + await double(value)


@calls()
class Counter:
    def __init__(self, start, step=1):
        self.value = start
        self.step = step

    def more(self):
        self.value += self.step
        return self.value

    async def more_later(self):
        import asyncio

        await asyncio.sleep(0.01)
        return self.more()

    def breaks(self):
        self.value = 1000
        raise KeyError("inside the class")

    def dies(self):
        import os

        os._exit(9)


async def counts():
    """One instance over calls, apart from another one."""
    counter, other = Counter(10, step=2), Counter(100)
    return [
        await counter.more(),
        await counter.more(),
        await other.more(),
        await counter.more_later(),
    ]


async def counts_together():
    """Three instances, five calls of each at once."""
    counters = [Counter(100 * n) for n in range(3)]
    rounds = await asyncio.gather(*(one.more() for one in counters for _ in range(5)))
    return sorted(rounds)


async def outlives_an_error():
    counter = Counter(0)
    with contextlib.suppress(Exception):
        await counter.breaks()
    return await counter.more()


async def begins_anew_after_a_crash():
    counter = Counter(50)
    await counter.more()
    try:
        await counter.dies()
    except Exception as error:
        told = str(error)
    return await counter.more(), "exit code 9" in told


def plain(text):
    raise ValueError(text)


CALLS_F = {
    "add": lambda: add(40, b=2),
    "add_later": lambda: add_later(40, 2),
    "together": lambda: asyncio.gather(*(add(n, 1) for n in range(8))),
    "nothing": nothing,
    "prints": lambda: prints("a line\nand another"),
    "fails": lambda: fails("no such luck"),
    "leaves": leaves,
    "dies": dies,
    "imports_module": lambda: imports_module(14),
    "stacked": lambda: stacked(20),
    "class": lambda: Counter(5).more(),
    "class_breaks": lambda: Counter(5).breaks(),
    "class_state": counts,
    "class_together": counts_together,
    "class_outlives_an_error": outlives_an_error,
    "class_after_a_crash": begins_anew_after_a_crash,
    "uses_a_package": uses_a_package,
    "needs_what_is_not_there": needs_what_is_not_there,
}


def request(code, name, *args):
    """A FunctionRequest, as the client makes it."""
    pickled = [base64.b64encode(cloudpickle.dumps(one)).decode() for one in args]
    return {"function_name": name, "function_code": code, "args": pickled}


def unpickled(output):
    return cloudpickle.loads(base64.b64decode(output["result"]))


SUM = request("def f(a, b):\n    print('adding')\n    return a + b\n", "f", 40, 2)
FAILURE = request("def f():\n    print('soon')\n    raise ValueError('no luck')\n", "f")
ITEMS = request(
    "def f(n):\n    for k in range(n):\n        print('item', k)\n        yield k * k\n", "f", 5
)
BUSY = request("def f():\n    while True:\n        pass\n", "f")
ASLEEP = request("async def f():\n    import asyncio\n    await asyncio.sleep(600)\n", "f")

ENDPOINT = Endpoint(id=os.environ.get("CALLS_ENDPOINT", "ep-local"))


async def job_run():
    job = await ENDPOINT.run(SUM)
    await job.wait(timeout=40)
    return job.done, unpickled(job.output), job.output["stdout"]


async def job_runsync():
    return unpickled((await ENDPOINT.runsync(SUM)).output)


async def job_fails():
    job = await ENDPOINT.run(FAILURE)
    await job.wait(timeout=40)
    return await job.status(), job.error, job.output["success"], job.output["stdout"]


async def job_stream():
    """The SDK's own client: flash has none for streams."""
    job = await asyncio.to_thread(runpod.Endpoint(ENDPOINT.id).run, {"input": ITEMS})
    items = await asyncio.to_thread(lambda: list(job.stream()))
    return [cloudpickle.loads(base64.b64decode(item)) for item in items], job.status()


async def job_cancel(given):
    job = await ENDPOINT.run(given)
    for _ in range(600):
        if await job.status() == "IN_PROGRESS":
            break
        await asyncio.sleep(0.05)
    # The SDK's own worker drops the stop of a job that it has taken and not begun.
    await asyncio.sleep(1)
    await job.cancel()
    return job.id, await job.status(), job.done


async def job_cancel_by_id():
    job = await ENDPOINT.run(ASLEEP)
    return job.id, (await ENDPOINT.cancel(job.id)).done


CALLS_J = {
    "run": job_run,
    "runsync": job_runsync,
    "fails": job_fails,
    "stream": job_stream,
    "cancel_asleep": lambda: job_cancel(ASLEEP),
    "cancel_busy": lambda: job_cancel(BUSY),
    "cancel_by_id": job_cancel_by_id,
}


class LocalApi:
    """What a deployed resource is to the stub; jobs go to the SDK's local API."""

    name = "local"

    async def run(self, payload):
        import httpx
        from runpod_flash.core.resources.serverless import JobOutput

        async with httpx.AsyncClient(timeout=40) as client:
            answer = (await client.post(f"{URL}/runsync", json={"input": payload})).json()
        return JobOutput(workerId="local", delayTime=0, executionTime=0, **answer)


async def through_stub(function, *args, **kwargs):
    stub = LiveServerlessStub(LocalApi())
    asked = await stub.prepare_request(function, [], [], True, *args, **kwargs)
    return stub.handle_response(await stub.ExecuteFunction(asked))


def unbound(a, b=0):
    return a + b


CALLS_D = {
    "add": lambda: through_stub(unbound, 40, b=2),
    "fails": lambda: through_stub(plain, "no such luck"),
}


async def run_sync(given):
    runpod.endpoint_url_base = URL
    return await asyncio.to_thread(runpod.Endpoint(".").run_sync, {"input": given}, 40)


async def local_sum():
    return unpickled(await run_sync(SUM))


CALLS_E = {"run_sync": local_sum, "fails": lambda: run_sync(FAILURE)}


async def outcome(call):
    try:
        value = await call()
    except BaseException as error:
        return {"raised": type(error).__name__, "text": str(error)[:4000]}
    return {"value": value}


async def main():
    calls = {"F": CALLS_F, "J": CALLS_J, "D": CALLS_D, "E": CALLS_E}[RECIPE]
    chosen = SimpleNamespace(names=os.environ.get("CALLS", ",".join(calls)).split(","))
    return {name: await outcome(calls[name]) for name in chosen.names}


print("\n" + json.dumps(asyncio.run(main())))
