"""A user's program for SDK 2.0: queue functions of a dev session."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
import time
import typing
from dataclasses import dataclass

from runpod import App, is_local

app = App("shop")
CPU = "cpu3c-2-4"
# How often this process has run this module.
os.environ["RUNS"] = str(int(os.environ.get("RUNS", "0")) + 1)
calls = 0
model = None


def helper(value):
    return value * 10


@dataclass
class Point:
    x: int
    y: "int" = 2


@app.queue(cpu=CPU, max_concurrency=2)
def scale(values, by=1):
    print("scaling")
    return [helper(value) * by for value in values]


@app.queue(cpu=CPU)
async def later(a, b=0):
    await asyncio.sleep(0.01)
    return a + b


@app.queue(cpu=CPU)
def echo(value=None):
    return value


@app.queue(cpu=CPU, name="tells-where")
def where():
    return {"local": is_local(), "name": __name__, "file": os.path.isfile(__file__)}


@app.queue(cpu=CPU)
def module_facts():
    def_line = inspect.getsource(Point).splitlines()[0]
    hints = typing.get_type_hints(Point)["x"].__name__
    return [def_line, hints, Point(1).y, sys.modules[__name__].Point is Point]


@app.queue(cpu=CPU)
def spawned(values):
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.map(helper, values)


@app.queue(cpu=CPU)
def items(count):
    for at in range(count):
        yield {"success": False, "at": at}


@app.queue(cpu=CPU)
async def later_items(count):
    for at in range(count):
        yield at
        await asyncio.sleep(0.01)


@app.queue(cpu=CPU)
def breaking_items():
    yield 1
    raise ValueError("no more")


@app.queue(cpu=CPU)
def factorial(n):
    return 1 if n < 2 else n * factorial.remote(n - 1)


@app.queue(cpu=CPU, max_concurrency=2)
def meets(own, other):
    """Return when another call runs at the same time."""
    open(own, "x").close()
    end = time.monotonic() + 60
    while not os.path.exists(other):
        if time.monotonic() > end:
            raise TimeoutError(other)
        time.sleep(0.02)
    return "met"


@app.queue(cpu=CPU, max_concurrency=2)
async def meets_later(own, other):
    return await asyncio.to_thread(meets.local, own, other)


@app.queue(cpu=CPU)
def process_facts():
    names = ("TAG", "RUNPOD_API_KEY", "RUNPOD_ENDPOINT_ID", "RUNPOD_DEV_APP", "RUNPOD_WEBHOOK_PING")
    return {"runs": os.environ["RUNS"], **{name: os.environ.get(name) for name in names}}


@app.queue(cpu=CPU)
def sdk_facts():
    import runpod

    return {"version": runpod.__version__, "path": runpod.__file__}


@app.queue(cpu=CPU)
def writes():
    import logging

    print("printed")
    print("on stderr", file=sys.stderr)
    os.write(1, b"by descriptor\n")
    logging.getLogger("user").warning("logged")


@app.queue(cpu=CPU)
def large(size):
    return "x" * size


@app.queue(cpu=CPU)
def counts(leave=False):
    """Leave state behind, which the next call must not see."""
    global calls
    calls += 1
    found = [calls, os.environ.get("LEFT"), "left_behind" in sys.modules]
    os.environ["LEFT"] = "yes"
    sys.modules["left_behind"] = sys
    return found


@app.queue(cpu=CPU)
def prepared(by=1):
    global calls
    calls += by
    return [calls, model]


@prepared.init
def load():
    global model
    model = "loaded"


@app.queue(cpu=CPU)
async def prepared_async():
    return model


@prepared_async.init
async def load_async():
    global model
    await asyncio.sleep(0.01)
    model = "loaded, later"


@app.queue(cpu=CPU)
def broken_start():
    return "not reached"


@broken_start.init
def fail():
    raise RuntimeError("no model here")


@app.queue(cpu=CPU)
def fails(text):
    raise ValueError(text)


@app.queue(cpu=CPU)
def unserialisable(kind):
    values = {"set": {1, 2}, "nan": float("nan"), "object": object(), "tuple": (1, 2)}
    return {"deep": [values[kind]]}


@app.queue(cpu=CPU)
def leaves(how):
    if how == "exit":
        sys.exit(3)
    if how == "_exit":
        os._exit(7)
    if how == "segfault":
        os.kill(os.getpid(), 11)
    if how == "loop":
        while True:
            pass
    while True:
        time.sleep(1)


@app.queue(cpu=CPU)
def not_shipped():
    import shared

    return shared


@app.queue(cpu=CPU, dependencies=["alpha==1.0"])
def uses_a_package():
    import alpha

    return alpha.version


@app.queue(cpu=CPU)
def mounted():
    from runpod import NetworkVolume

    return str(NetworkVolume("data").path)


@app.queue(cpu=CPU)
def modelled():
    from runpod import Model

    return str(Model("org/name").path)


@app.queue(cpu=CPU)
def unreachable():
    """A placeholder: when deployed, the function of broken.py runs."""


@app.queue(cpu=CPU)
def acts(what, value=None):
    """Perform one of many actions, because each deployed resource has a process of its own."""
    if what == "raise":
        raise ValueError(value)
    if what == "recursion":
        return 1 if value < 2 else value * acts.remote("recursion", value - 1)
    found = {
        "echo": lambda: value,
        "counts": counts.local,
        "facts": process_facts.local,
        "module": module_facts.local,
        "sdk": lambda: sdk_facts.local()["path"],
        "spawned": lambda: spawned.local(value),
        "large": lambda: large.local(value),
        "unserialisable": lambda: unserialisable.local(value),
    }
    return found[what]() if what in found else leaves.local(what)


if __name__ == "__main__":
    print("the main guard ran")
    sys.exit(9)
