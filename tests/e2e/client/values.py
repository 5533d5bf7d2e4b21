"""Values and exceptions of classes that the function's source defines; run by the client's interpreter: URL.

Prints one JSON object: what the client can do with them.
"""

import asyncio
import json
import os
import sys
from types import SimpleNamespace

os.environ["RUNPOD_API_KEY"] = "test-key"

(URL,) = sys.argv[1:]


def makes(x):
    import dataclasses

    global Point, Odd

    @dataclasses.dataclass
    class Point:
        x: int

        def double(self):
            return Point(2 * self.x)

    Point.__qualname__ = "Point"
    return Point(x), __name__


def raises(x):
    class Odd(Exception):
        def __init__(self, number):
            super().__init__(number)
            self.number = number

    raise Odd(x)


async def main():
    from runpod_flash.stubs.load_balancer_sls import LoadBalancerSlsStub

    stub = LoadBalancerSlsStub(SimpleNamespace(name="local", endpoint_url=URL))
    before = set(vars(sys.modules["__main__"]))
    point, module = await stub(makes, [], [], True, 21)
    found = {
        "module": module,
        "class": f"{type(point).__module__}.{type(point).__qualname__}",
        "double": point.double().x,
        "main": sorted(set(vars(sys.modules["__main__"])) - before),
        "imported": "__flash_live__" in sys.modules,
    }
    try:
        await stub(raises, [], [], True, 3)
    except Exception as error:
        found["error"] = str(error)
    return found


print(json.dumps(asyncio.run(main())))
