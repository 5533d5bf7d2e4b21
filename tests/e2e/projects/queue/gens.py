"""Generators."""

import asyncio
import os
import time

from runpod_flash import Endpoint


@Endpoint(name="items", cpu="cpu3c-1-2")
def items(number=3, fails=None, path=None):
    for n in range(number):
        if n == fails:
            raise ValueError("no more")
        yield {"n": n}
    while path and not os.path.exists(path):
        time.sleep(0.01)


@Endpoint(name="items-later", cpu="cpu3c-1-2", max_concurrency=2)
async def items_later(number=3):
    for n in range(number):
        await asyncio.sleep(0)
        yield n
