"""Classes: one with several methods, one for several jobs at a time, one with a single method."""

import asyncio

from runpod_flash import Endpoint


@Endpoint(name="counter", cpu="cpu3c-1-2")
class Counter:
    def __init__(self):
        self.value = 0

    def increase(self, by=1):
        self.value += by
        return self.value

    async def get(self):
        await asyncio.sleep(0)
        return self.value


@Endpoint(name="mixed", cpu="cpu3c-1-2", max_concurrency=2)
class Mixed:
    def plain(self, x):
        return x + 1

    async def later(self, x):
        await asyncio.sleep(0)
        return x + 2


@Endpoint(name="single", cpu="cpu3c-1-2")
class Single:
    def only(self, *args):
        return list(args)
