"""Calls through the real client's stub; run by the client's interpreter: RECIPE URL.

Prints one JSON object: function -> what came of the call.
"""

import asyncio
import json
import os
import shutil
import sys
from types import SimpleNamespace

os.environ["RUNPOD_API_KEY"] = "test-key"

RECIPE, URL = sys.argv[1:]


def add(a, b=0):
    return a + b


async def add_later(a, b):
    import asyncio

    await asyncio.sleep(0.01)
    return a + b


def nothing():
    print("nothing to return")


def fails():
    raise ValueError("no such luck")


def imports_module(value):
    import shipped

    return shipped.triple(value)


def returns_types():
    from datetime import date

    return {"set": {1, 2}, "when": date(2020, 1, 2), "bytes": b"\x00\xff", "inf": 1e309}


def too_large():
    return b"x" * (11 * 1024 * 1024)


def large():
    return b"x" * (7 * 1024 * 1024)


def unpicklable():
    import threading

    return threading.Lock()


def leaves():
    import sys

    sys.exit(3)


def imports_what_is_not_there():
    import qqzz

    return qqzz


def dies():
    import os

    os._exit(7)


def uses_a_package():
    import alpha

    return alpha.version


def needs_what_is_not_there():
    pass


#: By function: packages, system packages (such as every Debian has), accelerate_downloads.
NEEDS = {
    uses_a_package: (["alpha==1.0"], ["bash"] if shutil.which("dpkg-query") else [], False),
    needs_what_is_not_there: (["alpha==7"], [], True),
}
CALLS = [
    (uses_a_package, (), {}),
    (needs_what_is_not_there, (), {}),
    (add, (40,), {"b": 2}),
    (add_later, (40, 2), {}),
    (nothing, (), {}),
    (fails, (), {}),
    (imports_module, (14,), {}),
    (returns_types, (), {}),
    (large, (), {}),
    (too_large, (), {}),
    (unpicklable, (), {}),
    (leaves, (), {}),
    (dies, (), {}),
    (imports_what_is_not_there, (), {}),
]


def needs(function):
    return NEEDS.get(function, ([], [], True))


def stub_a():
    from runpod_flash.stubs.load_balancer_sls import LoadBalancerSlsStub

    stub = LoadBalancerSlsStub(SimpleNamespace(name="local", endpoint_url=URL))
    return lambda function, args, kwargs: stub(function, *needs(function), *args, **kwargs)


def stub_b():
    from runpod_flash import CpuLiveLoadBalancer
    from runpod_flash.stubs.registry import stub_resource

    class Local(CpuLiveLoadBalancer):
        @property
        def endpoint_url(self):
            return URL

    stub = stub_resource(Local(name="local"))
    return lambda function, args, kwargs: stub(function, *needs(function), *args, **kwargs)


async def outcome(call, function, args, kwargs):
    try:
        value = await call(function, args, kwargs)
    except BaseException as error:
        return {"raised": type(error).__name__, "text": str(error)[:3000]}
    return {"value": len(value) if isinstance(value, bytes) else repr(value)}


async def main():
    call = {"A": stub_a, "B": stub_b}[RECIPE]()
    return {f.__name__: await outcome(call, f, args, kwargs) for f, args, kwargs in CALLS}


json.dump(asyncio.run(main()), sys.stdout)
