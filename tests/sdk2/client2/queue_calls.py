"""Calls of queue functions through SDK 2.0, unmodified; run by its interpreter: MODULE CASES.

MODULE is a file of an app. In a dev session, the jobs of its functions go to the endpoint `ep-local`;
else its functions are deployed. CASES is JSON: a list of [name, function, how, arguments]; arguments
that are an object are keywords. Prints, last of all, one JSON object: name -> what came of it.
"""

import importlib.util
import json
import os
import sys
import threading
import time

from runpod.apps.context import block
from runpod.apps.targets import LiveTarget

MODULE, CASES = sys.argv[1:]
ENDPOINT = "ep-local"


def load():
    spec = importlib.util.spec_from_file_location("user_app", MODULE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["user_app"] = module
    spec.loader.exec_module(module)
    if os.environ.get("RUNPOD_DEV_SESSION"):
        for name in module.app.resources:
            module.app._dev_targets[name] = LiveTarget(ENDPOINT, name)
    return module


def call(handle, how, given):
    args, kwargs = ([], given) if isinstance(given, dict) else (given, {})
    return HOWS[how](handle, *args, **kwargs)


async def streamed(handle, *args):
    return [item async for item in handle.stream.aio(*args)]


def with_options(handle, *args):
    chosen = handle.with_options(ttl=600_000, low_priority=True, execution_timeout=60_000)
    return chosen.remote(*args)


def reconnected(handle, *args):
    return handle.job(handle.spawn(*args).id).result()


def cancelled(handle, *args):
    job = handle.spawn(*args)
    while job.status() == "IN_QUEUE":
        time.sleep(0.1)
    return job.cancel().status()


HOWS = {
    "remote": lambda handle, *args, **kwargs: handle.remote(*args, **kwargs),
    "remote.aio": lambda handle, *args: block(handle.remote.aio(*args)),
    "stream": lambda handle, *args: list(handle.stream(*args)),
    "stream.aio": lambda handle, *args: block(streamed(handle, *args)),
    "spawn": lambda handle, *args: handle.spawn(*args).result(),
    "job": reconnected,
    "cut": lambda handle, *args: handle.with_options(execution_timeout=1500).remote(*args),
    "options": with_options,
    "cancel": cancelled,
    "a set": lambda handle: handle.remote({1, 2}),
    "call": lambda handle, *args: handle(*args),
    "local": lambda handle, *args: handle.local(*args),
}


def run(module, told, name, function, how, arguments):
    try:
        told[name] = {"value": call(getattr(module, function), how, arguments)}
    except BaseException as error:
        told[name] = {"raised": type(error).__name__, "text": str(error)[:4000]}


def main():
    module, told = load(), {}
    threads = [
        threading.Thread(target=run, args=(module, told, *case)) for case in json.loads(CASES)
    ]
    for start in range(0, len(threads), 8):
        batch = threads[start : start + 8]
        for thread in batch:
            thread.start()
        for thread in batch:
            thread.join()
    print("\n" + json.dumps(told))


main()
