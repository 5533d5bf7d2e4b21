"""Rows of class instances, over HTTP."""

import time

from bench import deaths, http_load
from bench.context import Bench, in_turn
from bench.figures import Row, compared, limited

CONNECTIONS = 16
LOAD_S = 2.0
NAPS = 5
COUNTER = """
class Counter:
    def __init__(self, start):
        self.n = start

    def inc(self):
        self.n += 1
        return self.n

    def sleep(self, path):
        import os
        import time

        with open(path + ".new", "w") as file:
            file.write(str(os.getpid()))
        os.rename(path + ".new", path)
        time.sleep(60)

    async def nap(self):
        import asyncio

        await asyncio.sleep(1)
        return self.n
"""


def calls(bench: Bench) -> list[Row]:
    """Calls a second of one instance's method, beside a route that does nothing on a server
    of the same settings; and a few calls at once that sleep for a second.
    """
    loads: list[http_load.Load] = []
    routes: list[http_load.Load] = []
    naps: list[float] = []
    address, plain = bench.server.address, bench.plain
    increment = method("bench", "inc")
    http_load.saturate(address, increment, CONNECTIONS, 1.0)
    http_load.saturate(plain, increment, CONNECTIONS, 1.0)
    for number in bench.turns("method calls a second"):
        in_turn(
            number,
            lambda: routes.append(http_load.saturate(plain, increment, CONNECTIONS, LOAD_S)),
            lambda: loads.append(http_load.saturate(address, increment, CONNECTIONS, LOAD_S)),
        )
        naps.append(_together(address, method("bench", "nap"), NAPS))
    return [
        compared(
            f"method calls of an instance over /execute, {CONNECTIONS} connections",
            "/s",
            [load.rate for load in loads],
            "a FastAPI route that does nothing with the same request",
            [load.rate for load in routes],
            at_least=0.5,
            detail=http_load.told(loads),
        ),
        limited(f"{NAPS} async calls of an instance at once, of 1 s", "s", naps, at_most=1.1),
    ]


def death(bench: Bench) -> Row:
    """Death of an instance's process during a call."""
    path = bench.folder / "resident"
    request = method("mortal", "sleep", str(path), serialization_format="json")
    return deaths.over_http(bench, "an instance's process", request, path)


def method(instance: str, name: str, *args: object, **fields: object) -> bytes:
    """A call of a method, as the flash client sends it."""
    return http_load.request(
        COUNTER,
        function_name=None,
        function_code=None,
        execution_type="class",
        class_name="Counter",
        class_code=COUNTER,
        constructor_args=[10] if "serialization_format" in fields else ["gARLCi4="],
        constructor_kwargs={},
        method_name=name,
        args=list(args),
        kwargs={},
        instance_id=instance,
        create_new_instance=False,
        **fields,
    )


def _together(address: http_load.Address, data: bytes, number: int) -> float:
    began = time.perf_counter()
    with http_load.connected(address, number) as found:
        for one in found:
            one.send(data)
        for one in found:
            while not one.receive():
                pass
            one.check()
    return time.perf_counter() - began
